// Layout editor: lines of text over an image or a blank canvas, to be dragged, resized and rewritten.
//
// props.value  {width, height, image: data URL or null, strings: the strings of the prompt it was planned for or null,
//               lines: [{text, polygon: [[x, y], ...], colour, font}]}
//              lines: null leaves the lines as they are, as a person may be editing them
// props.colours, props.fonts  the choices of the lists
// props.blank  whether a line may have no text: it is a box over an image then
// props.hints  texts of an empty canvas: without an image, and with one
//
// A polygon's points are in image coordinates (0..1), clockwise from the top left corner of the first letter.

const VIEW_WIDTH = 1000;
const SVG = "http://www.w3.org/2000/svg";
const LINE_COLOURS = ["#d0143c", "#1f7a34", "#2c4fd0", "#b85c00", "#7a1fa2", "#00707a"];
const FONT_STYLES = {
  "sans": ["sans-serif", 400], "sans-bold": ["sans-serif", 700], "serif": ["serif", 400],
  "serif-bold": ["serif", 700], "mono-bold": ["monospace", 700],
};
const LEAST_SIDE = 0.02;

let state = read();
let selected = 0;

function read() {
  const value = props.value || {};
  return {
    width: value.width || 64, height: value.height || 64, image: value.image || null,
    strings: value.strings || null, lines: JSON.parse(JSON.stringify(value.lines || [])),
  };
}

// Sends the state to Python: a new object, so that the change is noticed.
function commit() {
  props.value = JSON.parse(JSON.stringify(state));
}

function viewHeight() {
  return VIEW_WIDTH * state.height / state.width;
}

function appendSvg(name, attributes, parent) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  parent.appendChild(node);
  return node;
}

function toView([x, y]) {
  return [x * VIEW_WIDTH, y * viewHeight()];
}

// The canvas is rendered anew at every step: the current one is measured.
function pointerPosition(event) {
  const box = element.querySelector(".canvas svg").getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

function translate(polygon, dx, dy) {
  const xs = polygon.map((p) => p[0]), ys = polygon.map((p) => p[1]);
  dx = Math.min(Math.max(dx, -Math.min(...xs)), 1 - Math.max(...xs));
  dy = Math.min(Math.max(dy, -Math.min(...ys)), 1 - Math.max(...ys));
  return polygon.map(([x, y]) => [x + dx, y + dy]);
}

// Moves a corner: an upright line stays upright, any other changes at that corner alone.
function resize(polygon, corner, [x, y]) {
  x = Math.min(Math.max(x, 0), 1);
  y = Math.min(Math.max(y, 0), 1);
  const [a, b, c, d] = polygon;
  const upright = polygon.length === 4 && Math.abs(a[1] - b[1]) < 1e-6 && Math.abs(c[1] - d[1]) < 1e-6
    && Math.abs(a[0] - d[0]) < 1e-6 && Math.abs(b[0] - c[0]) < 1e-6;
  const next = polygon.map((p) => [...p]);
  if (!upright) {
    next[corner] = [x, y];
    return next;
  }
  const left = corner === 0 || corner === 3, top = corner < 2;
  const edges = { left: a[0], right: b[0], top: a[1], bottom: c[1] };
  if (left) edges.left = Math.min(x, edges.right - LEAST_SIDE); else edges.right = Math.max(x, edges.left + LEAST_SIDE);
  if (top) edges.top = Math.min(y, edges.bottom - LEAST_SIDE); else edges.bottom = Math.max(y, edges.top + LEAST_SIDE);
  return [[edges.left, edges.top], [edges.right, edges.top], [edges.right, edges.bottom], [edges.left, edges.bottom]];
}

function trackDrag(event, step) {
  event.preventDefault();
  let last = pointerPosition(event);
  const onMove = (move) => {
    const now = pointerPosition(move);
    step(now, now[0] - last[0], now[1] - last[1]);
    last = now;
    renderCanvas();
  };
  const onUp = () => {
    window.removeEventListener("pointermove", onMove);
    window.removeEventListener("pointerup", onUp);
    window.removeEventListener("pointercancel", onUp);
    commit();
  };
  window.addEventListener("pointermove", onMove);
  window.addEventListener("pointerup", onUp);
  window.addEventListener("pointercancel", onUp);
}

function renderLine(svg, line, number) {
  const lineColour = LINE_COLOURS[number % LINE_COLOURS.length];
  const points = line.polygon.map(toView);
  const [first, second] = points, last = points[points.length - 1];
  const group = appendSvg("g", { class: "line" + (number === selected ? " selected" : ""), "data-line": number }, svg);
  const body = appendSvg("polygon", {
    points: points.map((p) => p.join(",")).join(" "), fill: lineColour, "fill-opacity": 0.12, stroke: lineColour,
    "stroke-width": number === selected ? 6 : 3, tabindex: 0, role: "button",
    "aria-label": "line " + (number + 1) + ": " + (line.text || "no text"),
  }, group);
  const count = Math.max(1, [...line.text].length);
  const textWidth = count * 60, textHeight = 100;
  const matrix = [
    (second[0] - first[0]) / textWidth, (second[1] - first[1]) / textWidth,
    (last[0] - first[0]) / textHeight, (last[1] - first[1]) / textHeight, first[0], first[1],
  ];
  const [family, weight] = FONT_STYLES[line.font] || ["monospace", 700];
  const text = appendSvg("text", {
    transform: "matrix(" + matrix.join(" ") + ")", x: 0, y: 88, "font-size": 118, "font-family": family,
    "font-weight": weight, textLength: textWidth, lengthAdjust: "spacingAndGlyphs", fill: line.colour || "#222",
    stroke: "#fff", "stroke-width": 3, "paint-order": "stroke", "pointer-events": "none",
  }, group);
  text.textContent = line.text;
  body.addEventListener("pointerdown", (event) => {
    selectLine(number);
    trackDrag(event, (now, dx, dy) => { line.polygon = translate(line.polygon, dx, dy); });
  });
  body.addEventListener("focus", () => { if (selected !== number) selectLine(number); });
  body.addEventListener("keydown", (event) => onKey(event, line, number));
  if (number !== selected) return;
  points.forEach((point, corner) => {
    const handle = appendSvg("circle", {
      cx: point[0], cy: point[1], r: 17, fill: "#fff", stroke: lineColour, "stroke-width": 6, "data-corner": corner,
    }, group);
    handle.addEventListener("pointerdown", (event) => {
      event.stopPropagation();
      trackDrag(event, (now) => { line.polygon = resize(line.polygon, corner, now); });
    });
  });
}

function renderHint(svg) {
  const hint = appendSvg("text", {
    x: VIEW_WIDTH / 2, y: viewHeight() / 2, "text-anchor": "middle", "font-size": 36, "font-family": "system-ui, sans-serif",
    fill: "#333", stroke: "#d9d9de", "stroke-width": 10, "paint-order": "stroke", "pointer-events": "none",
  }, svg);
  hint.textContent = (props.hints || [])[state.image ? 1 : 0] || "";
}

// Arrow keys move the selected line by a hundredth of the image, with Shift they resize it; Delete removes it.
function onKey(event, line, number) {
  const steps = { ArrowLeft: [-0.01, 0], ArrowRight: [0.01, 0], ArrowUp: [0, -0.01], ArrowDown: [0, 0.01] };
  if (event.key === "Delete") {
    remove(number);
  } else if (steps[event.key]) {
    event.preventDefault();
    const [dx, dy] = steps[event.key];
    const [x, y] = line.polygon[2];
    line.polygon = event.shiftKey ? resize(line.polygon, 2, [x + dx, y + dy]) : translate(line.polygon, dx, dy);
    commit();
    renderCanvas();
    const again = element.querySelector(`g[data-line="${number}"] polygon`);
    if (again) again.focus();
  }
}

function selectLine(number) {
  selected = number;
  renderCanvas();
  renderList();
}

function remove(number) {
  state.lines.splice(number, 1);
  selected = Math.max(0, Math.min(selected, state.lines.length - 1));
  commit();
  render();
}

function add() {
  const count = state.lines.length;
  const top = Math.min(0.08 + 0.24 * (count % 4), 0.75);
  state.lines.push({
    text: props.blank ? "" : "TEXT", polygon: [[0.15, top], [0.85, top], [0.85, top + 0.18], [0.15, top + 0.18]],
    colour: null, font: null,
  });
  selected = count;
  commit();
  render();
}

function renderCanvas() {
  const holder = element.querySelector(".canvas");
  const focused = document.activeElement;
  holder.replaceChildren();
  const svg = appendSvg("svg", { viewBox: `0 0 ${VIEW_WIDTH} ${viewHeight()}`, role: "group", "aria-label": "layout" }, holder);
  appendSvg("rect", { x: 0, y: 0, width: VIEW_WIDTH, height: viewHeight(), fill: "#d9d9de" }, svg);
  if (state.image && state.image.startsWith("data:image/")) {
    appendSvg("image", { href: state.image, x: 0, y: 0, width: VIEW_WIDTH, height: viewHeight(), preserveAspectRatio: "none" }, svg);
  }
  const order = state.lines.map((_, number) => number).filter((number) => number !== selected);
  if (selected < state.lines.length) order.push(selected);
  for (const number of order) renderLine(svg, state.lines[number], number);
  if (!state.lines.length) renderHint(svg);
  if (focused && focused.isConnected) focused.focus();
}

function dropdown(options, value, label, set) {
  const select = document.createElement("select");
  select.setAttribute("aria-label", label);
  for (const [name, shown] of options) {
    const option = new Option(shown, name, false, (value || "") === name);
    select.add(option);
  }
  select.addEventListener("change", () => { set(select.value || null); commit(); renderCanvas(); });
  return select;
}

function renderList() {
  const holder = element.querySelector(".lines");
  holder.replaceChildren();
  state.lines.forEach((line, number) => {
    const row = document.createElement("div");
    row.className = "row" + (number === selected ? " selected" : "");
    row.style.borderColor = LINE_COLOURS[number % LINE_COLOURS.length];
    const text = document.createElement("input");
    text.value = line.text;
    text.setAttribute("aria-label", `text of line ${number + 1}`);
    text.placeholder = props.blank ? "empty: removes text" : "text";
    text.addEventListener("focus", () => {
      if (selected !== number) { selected = number; renderCanvas(); }
    });
    text.addEventListener("input", () => { line.text = text.value; commit(); renderCanvas(); });
    row.appendChild(text);
    const colours = [["", "colour: as prompted"], ...(props.colours || []).map((name) => [name, name])];
    const fonts = [["", "font: any"], ...(props.fonts || []).map((name) => [name, name])];
    row.appendChild(dropdown(colours, line.colour, `colour of line ${number + 1}`, (value) => { line.colour = value; }));
    row.appendChild(dropdown(fonts, line.font, `font of line ${number + 1}`, (value) => { line.font = value; }));
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Remove";
    button.setAttribute("aria-label", `remove line ${number + 1}`);
    button.addEventListener("click", () => remove(number));
    row.appendChild(button);
    holder.appendChild(row);
  });
}

function render() {
  renderCanvas();
  renderList();
  button.disabled = Boolean(props.blank) && !state.image;
}

const button = element.querySelector(".add");
button.textContent = props.blank ? "Add a box" : "Add a line";
button.addEventListener("click", add);
watch("value", () => {
  if (props.value && !props.value.lines) {
    state.strings = props.value.strings;
    commit();
    return;
  }
  state = read();
  selected = Math.max(0, Math.min(selected, state.lines.length - 1));
  render();
});
render();
