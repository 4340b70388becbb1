"""A sweep and its best run in a real browser, and the notice that a training has ended."""

from __future__ import annotations

import shutil

from tests.browser import RENDERERS, Page, page
from tests.conftest import DEV_DIR
from tests.host import Host

PICTURES = DEV_DIR / "pictures"
NAME = "lora-listed-later-00000000"
WIRED = """async () => {
  const [sweep, load] = ["PersonalizeSweep", "PersonalizeLoadRun"].map((type, place) => {
    const node = LiteGraph.createNode(type);
    node.pos = [60 + 520 * place, 80];
    return app.graph.add(node), node;
  });
  const place = load.inputs.findIndex(({ name }) => name === "run");
  const output = sweep.outputs.findIndex(({ name }) => name === "best");
  if (!sweep.connect(output, load, place)) throw new Error("the wire was refused");
  const queued = (await app.graphToPrompt()).output[load.id].inputs.run;
  load.disconnectInput(place);
  return { queued, sweep: String(sweep.id), output };
}"""
LISTED = """() => app.graph.nodes.find(({ comfyClass }) => comfyClass === "PersonalizeLoadRun")
  .widgets.find(({ name }) => name === "run").options.values"""
# What the browser would show, in its place; the page is hidden.
HIDDEN = """() => {
  window.notices = new Map();
  window.Notification = class {
    static permission = "default";
    static requestPermission = async () => {
      window.asked = (window.asked ?? 0) + 1;
      return (this.permission = window.answer);
    };
    constructor(title, { body, tag }) { window.notices.set(tag, [title, body]); }
  };
  Object.defineProperty(document, "hidden", { get: () => true });
}"""
TOLD = """async (texts) => {
  for (const [training, text] of texts) {
    const detail = { graph: null, node: "1", run: "lora-nobody-00000000", training, text };
    app.api.dispatchEvent(new CustomEvent("personalize.training", { detail }));
  }
}"""
NOTICES = "() => [...window.notices.values()]"


def test_best_of_a_sweep_is_wired_to_load_run_whose_list_is_read_anew(host: Host) -> None:
    folder = host.base / "output" / "personalize" / NAME
    for renderer in RENDERERS:
        with page(host, renderer) as shown:
            wired = shown.run(WIRED)
            assert wired["queued"] == [wired["sweep"], wired["output"]]
            assert NAME not in shown.run(LISTED)
            folder.mkdir(parents=True)
            (folder / "run.json").write_text("{}")
            shown.run("() => app.refreshComboInNodes()")
            assert NAME in shown.run(LISTED)
            shutil.rmtree(folder)
            shown.settle()
            shown.picture(PICTURES / f"sweep and load run {renderer}.png")
            assert shown.complaints == []


def test_notice_at_the_end_is_one_and_only_for_those_who_allow_it(host: Host) -> None:
    with page(host) as shown:
        shown.run(HIDDEN)
        ended = [[True, "step 1/2"], [False, "done: 2 steps"]]
        notices_of(shown, ended, 0)
        assert shown.run("() => window.asked ?? 0") == 0, "nobody asked for it"
        for answer in ("denied", "granted"):
            shown.run("(answer) => void (window.answer = answer)", answer)
            shown.set({"Personalize.Notify": False})
            shown.set({"Personalize.Notify": True})
            warned = shown.tab.get_by_text("The browser shows no notifications")
            if answer == "denied":
                warned.wait_for()
                shown.picture(PICTURES / "notifications denied.png")
                notices_of(shown, ended, 0)
        assert shown.run("() => window.asked") == 2
        [[title, text]] = notices_of(shown, ended, 1)
        assert (title, text) == ("lora-nobody-00000000", "done: 2 steps")
        # Runs of a sweep are told at its end.
        shown.run("() => window.notices.clear()")
        first = [[True, "run 1 of 2: rank 4\nstep 1/2"], [False, "run 1 of 2: rank 4\ndone"]]
        notices_of(shown, first, 0)
        last = [[True, "run 2 of 2: rank 8\nstep 1/2"], [False, "2 runs done\nbest by"]]
        assert notices_of(shown, last, 1)[0][1] == "2 runs done\nbest by"
        shown.set({"Personalize.Notify": False})
        shown.forgive(404)  # there is no such run


def notices_of(shown: Page, texts: list[list[object]], count: int) -> list[list[str]]:
    """What is shown some time after a training has said these, once there are so many."""
    shown.run(TOLD, texts)
    if count:
        shown.until("(count) => window.notices.size === count", count)
    else:
        shown.tab.wait_for_timeout(2000)
    found: list[list[str]] = shown.run(NOTICES)
    assert len(found) == count
    return found
