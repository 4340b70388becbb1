"""Whether all people can read and reach what a page shows, as far as its elements tell.

After WCAG 2.2, level AA: 1.4.3 and 1.4.11 (contrast of text, and of controls and graphics), 2.5.8
(size of targets), 4.1.2 (names of controls).
"""

from __future__ import annotations

from collections.abc import Sequence

from .browser import Page

FAULTS = """
([scope]) => {
  const [TEXT, GRAPHICS, TARGET_PX] = [4.5, 3, 24];
  const TYPED = "input:not([type=checkbox], [type=radio], [type=range]), textarea, select";
  const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  function colourOf(css) {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = css;
    pen.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = pen.getImageData(0, 0, 1, 1).data;
    return [red, green, blue, alpha / 255];
  }
  const over = (top, below) => below.map((value, at) => top[at] * top[3] + value * (1 - top[3]));
  function luminance(colour) {
    const [red, green, blue] = colour.map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  }
  function contrast(one, two) {
    const [low, high] = [luminance(one), luminance(two)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  }
  function around(element) {
    const all = [];
    for (let at = element; at; at = at.parentElement) all.push(at);
    return all;
  }
  const behind = (element) => around(element).reverse().reduce((below, at) =>
    over(colourOf(getComputedStyle(at).backgroundColor), below), [255, 255, 255]);
  const opacity = (element) => around(element).reduce((all, at) =>
    all * Number(getComputedStyle(at).opacity), 1);
  const faults = new Set();
  function look(what, element, css, wanted, words, part = 1) {
    const [back, colour] = [behind(element), colourOf(css)];
    colour[3] *= opacity(element) * part;
    const found = contrast(over(colour, back), back);
    if (found < wanted) faults.add(`${what} ${found.toFixed(2)}: ${words.trim().slice(0, 60)}`);
  }
  const nameOf = (element) => (element.ariaLabel || element.labels?.[0]?.textContent
    || element.textContent || element.title || "").trim();
  function lookAtControl(element, style) {
    const name = nameOf(element);
    if (!name) faults.add(`no name: ${element.outerHTML.slice(0, 80)}`);
    const target = element.labels?.[0] ?? element; // in pixels of the page, at any zoom of a graph
    const isSmall = Math.min(target.offsetHeight, target.offsetWidth) < TARGET_PX;
    if (isSmall && style.borderTopWidth !== "0px") faults.add(`small: ${name}`);
    if (!element.matches(`${TYPED}, button`) || style.borderTopWidth === "0px") return;
    const outside = behind(element.parentElement);
    const edges = [over(colourOf(style.borderTopColor), outside), behind(element)];
    const edge = Math.max(...edges.map((colour) => contrast(colour, outside)));
    if (edge < GRAPHICS) faults.add(`edge ${edge.toFixed(2)}: ${name}`);
    if (!element.matches(TYPED)) return;
    look("value", element, style.color, TEXT, name);
    const placeholder = getComputedStyle(element, "::placeholder");
    if (element.placeholder)
      look("placeholder", element, placeholder.color, TEXT, name, Number(placeholder.opacity));
  }
  const roots = [...document.querySelectorAll(scope)];
  if (!roots.length) faults.add(`there is no ${scope}`);
  for (const element of roots.flatMap((root) => [root, ...root.querySelectorAll("*")])) {
    if (!element.getClientRects().length || element.closest("style, title, option")) continue;
    if (element.closest(":disabled, [aria-disabled=true]")) continue;
    const style = getComputedStyle(element);
    const text = [...element.childNodes].filter(({ nodeType }) => nodeType === Node.TEXT_NODE)
      .map(({ data }) => data).join("").trim();
    const isDrawn = element instanceof SVGElement;
    if (text) look("text", element, isDrawn ? style.fill : style.color, TEXT, text);
    // Among several runs the losses themselves are a ground for the smoothed lines.
    const isGround = element.matches(".raw")
      && element.parentElement.querySelectorAll(".smoothed").length > 1;
    if (isDrawn && !isGround && element.matches("polyline, circle, .cursor")) {
      const css = style.stroke === "none" ? style.fill : style.stroke;
      look(element.tagName, element, css, GRAPHICS, element.getAttribute("class") ?? "");
    }
    if (element.matches("img") && !element.hasAttribute("alt")) faults.add("a picture has no alt");
    if (element.matches("canvas, dialog, svg[role]") && !nameOf(element) && element.role)
      faults.add(`no name: ${element.outerHTML.slice(0, 80)}`);
    if (element.matches("input, textarea, select, button, summary, [role=button]"))
      lookAtControl(element, style);
  }
  return [...faults];
}
"""


def faults(opened: Page, scope: str, palettes: Sequence[str] = ("light", "dark")) -> list[str]:
    """What is wrong with the elements of a CSS selector; the last palette stays."""
    found = []
    for palette in palettes:
        opened.set({"Comfy.ColorPalette": palette})
        opened.tab.wait_for_timeout(500)  # until it is in place and curves are drawn anew
        found += [f"{palette}: {fault}" for fault in opened.run(FAULTS, [scope])]
    return found
