// How the pictures of a folder and their captions look in the body of a node.

export const STYLE = `
.personalize-captions { position: relative; color: var(--input-text, #ddd); font: 11px sans-serif; }
.personalize-captions > div { position: absolute; inset: 0; display: flex; flex-direction: column; }
.personalize-captions .pictures { flex: 1; min-height: 0; overflow-y: auto; outline: none; }
.personalize-captions [hidden] { display: none !important; }
.personalize-captions p { margin: 4px; white-space: pre-line; overflow-wrap: anywhere; }
.personalize-captions section {
  display: grid; gap: 6px; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr));
}
.personalize-captions figure { margin: 0; min-width: 0; position: relative; }
.personalize-captions img {
  display: block; width: 100%; height: 104px; object-fit: contain;
  background: var(--comfy-input-bg, #222); border-radius: 4px;
}
.personalize-captions figure > div {
  position: absolute; top: 66px; right: 2px; display: flex; gap: 2px; pointer-events: none;
}
.personalize-captions figure > div img {
  width: auto; height: 36px; max-width: 48px; border-radius: 2px; pointer-events: auto;
  outline: 1px solid var(--border-color, #4e4e4e);
}
.personalize-captions .caption {
  display: block; max-height: 58px; overflow: hidden auto; margin-top: 2px; padding: 5px 2px;
  border-radius: 3px;
  white-space: pre-line; overflow-wrap: anywhere; line-height: 14px; min-height: 14px;
  unicode-bidi: plaintext;
}
.personalize-captions .caption.editable { cursor: text; }
.personalize-captions .caption.editable:is(:hover, :focus) {
  background: var(--comfy-input-bg, #222); outline: 1px solid var(--border-color, #4e4e4e);
}
.personalize-captions .faint { opacity: 0.8; font-style: italic; }
.personalize-captions textarea {
  box-sizing: border-box; width: 100%; height: 90px; resize: vertical; font: inherit;
  color: inherit; background: var(--comfy-input-bg, #222); unicode-bidi: plaintext;
  border: 1px solid color-mix(in srgb, var(--input-text, #ddd) 60%, transparent); border-radius: 3px;
}
.personalize-captions ::placeholder { color: inherit; opacity: 0.8; }
.personalize-captions mark {
  position: absolute; top: 4px; right: 4px; padding: 1px 4px; border-radius: 3px;
  background: #8a5a00; color: #fff;
}
.personalize-captions .error {
  color: color-mix(in srgb, var(--error-text, #ff4444) 55%, var(--input-text, #ddd));
}
.personalize-captions :is(nav, form) {
  display: flex; gap: 4px; align-items: center; padding: 0 0 4px; flex: none;
}
.personalize-captions form { flex-wrap: wrap; }
.personalize-captions :is(button, input) {
  font: inherit; color: inherit; height: 26px; min-width: 28px; box-sizing: border-box; padding: 0 8px;
  background: var(--comfy-input-bg, #222);
  border: 1px solid color-mix(in srgb, var(--input-text, #ddd) 60%, transparent);
  border-radius: 3px; white-space: nowrap;
}
.personalize-captions input { flex: 1 1 80px; min-width: 60px; cursor: text; }
.personalize-captions button { cursor: pointer; flex: none; }
.personalize-captions button:is(:disabled, [aria-disabled="true"]) { opacity: 0.5; cursor: default; }
.personalize-captions button[aria-pressed="true"] {
  outline: 1px solid var(--input-text, #ddd); text-decoration: underline;
}
.personalize-captions :is(button, input, textarea, .caption, img):focus-visible {
  outline: 2px solid var(--p-primary-color, #58f);
}
.personalize-captions nav output {
  flex: 1; min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
}
.personalize-captions form output { flex: 1 1 100%; min-height: 14px; white-space: pre-line; }
.personalize-captions .caption.proposed { border-left: 2px dashed #b57b00; padding-left: 4px; }
.personalize-captions .one section { display: block; height: 100%; }
.personalize-captions .one figure { display: none; }
.personalize-captions .one figure.current { display: flex; flex-direction: column; height: 100%; }
.personalize-captions .one figure > img { flex: 1; min-height: 60px; height: auto; }
.personalize-captions .one figure > div { top: 4px; }
.personalize-captions .one .caption {
  flex: none; max-height: 40%; font-size: 13px; line-height: 17px;
}
.personalize-captions .one textarea {
  flex: none; height: 40%; min-height: 70px; font-size: 13px; resize: none;
}
`;
