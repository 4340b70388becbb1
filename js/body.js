// Elements of ours in the body of a node, in both renderers.

const SMALLEST_WIDTH = 300;

// Puts `element` below the node's widgets. `height()` says how many pixels it needs now; call the
// function that comes back when that has changed.
export function addBody(node, name, element, height) {
  const widget = node.addDOMWidget(name, name, element, {
    serialize: false, // a saved graph has a value for each widget but this one
    hideOnZoom: false,
    getMinHeight: height,
    getMaxHeight: height,
  });
  widget.serialize = false;
  // What is done inside belongs to it, not to the canvas below.
  for (const kind of ["wheel", "keydown", "keyup", "copy", "paste", "pointerdown"]) {
    element.addEventListener(kind, (event) => event.stopPropagation());
  }
  return () => fit(node);
}

function fit(node) {
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width, SMALLEST_WIDTH), height]);
  node.setDirtyCanvas?.(true, true);
}
