// What the pages of this pack say, in the language that ComfyUI is set to.

// `text`, with {name} replaced by values[name]. The English text is the key of its translations.
export function tr(text, values = {}) {
  return text.replace(/\{(\w+)\}/g, (whole, name) => String(values[name] ?? whole));
}
