// Choosing a preset fills the node's other widgets; changing one of those makes it "custom" again.
// The values come with the node's definition, from trainers/settings/dreambooth.py.

import { app } from "../../scripts/app.js";

const CUSTOM = "custom";

function presetsOf(definition) {
  return definition.input?.required?.preset?.[1]?.presets;
}

function onChange(widget, react) {
  const before = widget.callback;
  widget.callback = function (...args) {
    const result = before?.apply(this, args);
    react(widget.value);
    return result;
  };
}

function connect(node, presets) {
  const widgets = new Map(node.widgets.map((widget) => [widget.name, widget]));
  const preset = widgets.get("preset");
  let filling = false;

  onChange(preset, (name) => {
    filling = true;
    for (const [setting, value] of Object.entries(presets[name] ?? {})) {
      const widget = widgets.get(setting);
      widget.value = value;
      widget.callback?.(value);
    }
    filling = false;
    node.setDirtyCanvas(true, true);
  });

  const settings = new Set(Object.values(presets).flatMap(Object.keys));
  for (const setting of settings) {
    onChange(widgets.get(setting), (value) => {
      const chosen = presets[preset.value];
      if (!filling && chosen && chosen[setting] !== value) preset.value = CUSTOM;
    });
  }
}

app.registerExtension({
  name: "personalize.presets",
  beforeRegisterNodeDef(nodeType, definition) {
    const presets = presetsOf(definition);
    if (!presets) return;
    const created = nodeType.prototype.onNodeCreated;
    nodeType.prototype.onNodeCreated = function (...args) {
      const result = created?.apply(this, args);
      connect(this, presets);
      return result;
    };
  },
});
