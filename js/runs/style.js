// How the tab looks, in the colours of the host's palette.

import { BELOW_PX } from "../pictures/slider.js";

export const STYLE = `
.personalize-runs, .personalize-runs-dialog {
  color: var(--input-text, #ddd); font: 13px/1.4 system-ui, sans-serif; box-sizing: border-box;
}
.personalize-runs { display: flex; flex-direction: column; height: 100%; min-height: 0;
  container: personalize-runs / inline-size; }
.personalize-runs *, .personalize-runs-dialog * { box-sizing: border-box; }
.personalize-runs [hidden] { display: none !important; }
.personalize-runs > section { display: flex; flex-direction: column; flex: 1; min-height: 0; }
.personalize-runs .scrolled { flex: 1; min-height: 0; overflow: auto; position: relative; }
.personalize-runs .bar { padding: 8px 10px; display: flex; flex-direction: column; gap: 6px;
  border-bottom: 1px solid var(--border-color, #4e4e4e); }
.personalize-runs h2, .personalize-runs-dialog h2 { margin: 0; font-size: 15px; font-weight: 600; }
.personalize-runs h3, .personalize-runs-dialog h3 {
  margin: 16px 0 6px; font-size: 13px; font-weight: 600; }
.personalize-runs small, .personalize-runs-dialog small, .personalize-runs .line,
.personalize-runs .legend, .personalize-runs dt { color: var(--input-text, #ddd); opacity: 0.8; }
.personalize-runs :is(button, select, input[type=search], input[type=text], textarea),
.personalize-runs-dialog :is(button, select) {
  font: inherit; padding: 4px 10px; border-radius: 5px; min-width: 0; min-height: 24px;
  color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222);
  border: 1px solid color-mix(in srgb, var(--input-text, #ddd) 60%, transparent);
}
.personalize-runs ::placeholder { color: inherit; opacity: 0.8; }
.personalize-runs :is(button, select), .personalize-runs-dialog :is(button, select) { cursor: pointer; }
.personalize-runs button:disabled, .personalize-runs-dialog button:disabled {
  opacity: 0.5; cursor: default; }
.personalize-runs :focus-visible, .personalize-runs-dialog :focus-visible {
  outline: 2px solid var(--p-primary-color, #58f); outline-offset: 1px; }
.personalize-runs .buttons { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; }
.personalize-runs .filters { display: flex; gap: 6px; }
.personalize-runs .filters input { flex: 1; }
.personalize-runs .undo { display: flex; gap: 8px; align-items: center; padding: 6px 10px; }
.personalize-runs .undo span { flex: 1; overflow-wrap: anywhere; }
.personalize-runs .rows { position: relative; }
.personalize-runs .row {
  position: absolute; inset: 0 0 auto 0; height: 118px; padding: 8px 10px; overflow: hidden;
  display: grid; grid-template-columns: 16px 56px minmax(0, 1fr) 64px; gap: 4px 8px; cursor: pointer;
  align-items: center; border-bottom: 1px solid var(--border-color, #4e4e4e);
  contain: layout paint style;
}
.personalize-runs .row:hover, .personalize-runs .row:focus-within {
  background: var(--comfy-input-bg, #222); }
@container personalize-runs (max-width: 250px) {
  .personalize-runs .buttons { gap: 4px; }
  .personalize-runs .buttons button { padding: 4px 6px; }
}
.personalize-runs .below { grid-column: 2 / -1; }
.personalize-runs .pick { width: 16px; height: 16px; margin: 0; }
.personalize-runs .row label { padding: 6px; margin: -6px; line-height: 0; cursor: pointer; }
.personalize-runs .picture { width: 56px; height: 56px; object-fit: cover; border-radius: 4px; }
.personalize-runs .picture.none { display: grid; place-items: center; text-align: center;
  font-size: 11px; opacity: 0.8; border: 1px dashed var(--border-color, #4e4e4e); }
.personalize-runs .head { display: flex; gap: 6px; align-items: center; }
.personalize-runs button.name { padding: 0; border: 0; background: none; font-weight: 600;
  text-align: left; }
.personalize-runs .name, .personalize-runs .line { overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
.personalize-runs .badge { font-size: 11px; padding: 0 5px; border-radius: 8px;
  border: 1px solid currentColor; }
.personalize-runs [data-state=training] .below .line:first-child { font-weight: 600; opacity: 1; }
.personalize-runs .side svg { width: 64px; height: 26px; display: block; }
.personalize-runs .side polyline { fill: none; stroke: currentColor; stroke-width: 1.5; }
.personalize-runs .side .line { text-align: right; font-size: 12px; }
.personalize-runs .badge { flex: none; }
@container personalize-runs (max-width: 300px) {
  .personalize-runs .row { grid-template-columns: 16px minmax(0, 1fr) 64px; row-gap: 0;
    align-content: center; }
  .personalize-runs .row > .picture { display: none; }
  .personalize-runs .words { display: contents; }
  .personalize-runs .head { grid-column: 2 / -1; }
  .personalize-runs .words > .line { grid-column: 2; }
  .personalize-runs .side { grid-area: 2 / 3 / span 2; }
}
.personalize-runs .empty { padding: 16px 10px; margin: 0; }
.personalize-runs .trash { padding: 6px 10px; border-top: 1px solid var(--border-color, #4e4e4e); }
.personalize-runs .trash ul { max-height: 9rem; overflow: auto; }
:is(.personalize-runs, .personalize-runs-dialog) summary { cursor: pointer; padding: 3px 0; }
.personalize-runs ul, .personalize-runs-dialog ul { list-style: none; margin: 4px 0; padding: 0; }
.personalize-runs li { display: flex; gap: 8px; align-items: center; margin: 3px 0;
  overflow-wrap: anywhere; }
.personalize-runs li span { flex: 1; min-width: 0; }
.personalize-runs .problems, .personalize-runs-dialog .problems {
  color: color-mix(in srgb, var(--error-text, #f55) 55%, var(--input-text, #ddd)); }
.personalize-runs .details { padding: 10px; }
.personalize-runs .field { display: block; margin: 8px 0; }
.personalize-runs .field :is(input, textarea) { display: block; width: 100%; margin-top: 2px; }
.personalize-runs .title { font-weight: 600; }
.personalize-runs textarea { resize: vertical; }
.personalize-runs dl { display: grid; grid-template-columns: 6.2rem minmax(0, 1fr); gap: 2px 8px;
  margin: 10px 0; }
.personalize-runs dd { margin: 0; overflow-wrap: anywhere; }
.personalize-runs table, .personalize-runs-dialog table { border-collapse: collapse; width: 100%;
  table-layout: fixed; }
:is(.personalize-runs, .personalize-runs-dialog) :is(td, th) { padding: 3px 6px 3px 0;
  vertical-align: top; text-align: left; overflow-wrap: anywhere;
  border-top: 1px solid var(--border-color, #4e4e4e); }
.personalize-runs th[scope=colgroup] { font-weight: 600; border: 0; padding-top: 8px; }
.personalize-runs .changed td:last-child { font-weight: 600; }
.personalize-runs .changed td small { font-weight: 400; }
:is(.personalize-runs, .personalize-runs-dialog) .check { display: flex; gap: 6px;
  align-items: center; margin: 4px 0; min-height: 24px; }
.personalize-runs-dialog {
  margin: auto; padding: 16px 18px; width: min(74rem, 94vw); max-height: 92vh; overflow: auto;
  background: var(--comfy-menu-bg, #353535); border: 1px solid var(--border-color, #4e4e4e);
  border-radius: 8px; box-shadow: 0 8px 32px rgb(0 0 0 / 40%);
}
.personalize-runs-dialog.small { width: min(34rem, 92vw); }
.personalize-runs-dialog::backdrop { background: rgb(0 0 0 / 45%); }
.personalize-runs-dialog p { margin: 8px 0; }
.personalize-runs-dialog footer { display: flex; gap: 8px; justify-content: end; margin-top: 14px; }
.personalize-runs-dialog .top { display: flex; gap: 10px; align-items: center; }
.personalize-runs-dialog .top h2 { flex: 1; }
.personalize-runs-dialog tr.differs td { font-weight: 600; }
.personalize-runs-dialog td.mark { width: 2rem; text-align: center; }
.personalize-runs-dialog .table { overflow-x: auto; }
.personalize-runs-dialog .pictures { display: flex; flex-wrap: wrap; gap: 18px; align-items: start; }
.personalize-runs-dialog .personalize-slider { width: min(512px, 80vw);
  height: calc(min(512px, 80vw) + ${BELOW_PX}px); }
.personalize-runs-dialog .choices { display: flex; flex-direction: column; gap: 8px; min-width: 14rem; }
.personalize-runs-dialog .choices select { display: block; width: 100%; margin-top: 2px; }
`;
