// The canvas: lines of text over a blank ground or an image, to be dragged, resized and rewritten.
//
// props.value  {width, height, image: data URL or null, said: the strings of the prompt that was planned or null,
//               lines: [{text, polygon: [[x, y], ...], colour, font}]}
//              with said alone, the lines stay as they are: a person may be at work on them
// props.colours, props.fonts  what the lists offer
// props.blank  whether a line may stay without text: it is a box of an image then
// props.hints  what an empty canvas says: without an image, and with one
//
// A polygon's points are shares of the image, clockwise from the top left corner of the first letter.

const WIDE = 1000;
const SVG = "http://www.w3.org/2000/svg";
const INKS = ["#d0143c", "#1f7a34", "#2c4fd0", "#b85c00", "#7a1fa2", "#00707a"];
const FACES = {
  "sans": ["sans-serif", 400], "sans-bold": ["sans-serif", 700], "serif": ["serif", 400],
  "serif-bold": ["serif", 700], "mono-bold": ["monospace", 700],
};
const LEAST = 0.02;

let state = read();
let chosen = 0;

function read() {
  const value = props.value || {};
  return {
    width: value.width || 64, height: value.height || 64, image: value.image || null,
    said: value.said || null, lines: JSON.parse(JSON.stringify(value.lines || [])),
  };
}

// What Python gets: a new object, so that the change is noticed.
function commit() {
  props.value = JSON.parse(JSON.stringify(state));
}

function high() {
  return WIDE * state.height / state.width;
}

function make(name, attributes, parent) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  parent.appendChild(node);
  return node;
}

function onPage([x, y]) {
  return [x * WIDE, y * high()];
}

// The canvas is drawn anew at every step: measured is the one that is there now.
function place(event) {
  const box = element.querySelector(".canvas svg").getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

function moved(polygon, dx, dy) {
  const xs = polygon.map((p) => p[0]), ys = polygon.map((p) => p[1]);
  dx = Math.min(Math.max(dx, -Math.min(...xs)), 1 - Math.max(...xs));
  dy = Math.min(Math.max(dy, -Math.min(...ys)), 1 - Math.max(...ys));
  return polygon.map(([x, y]) => [x + dx, y + dy]);
}

// A corner is pulled: an upright line stays upright, any other gives way at that corner alone.
function pulled(polygon, corner, [x, y]) {
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
  if (left) edges.left = Math.min(x, edges.right - LEAST); else edges.right = Math.max(x, edges.left + LEAST);
  if (top) edges.top = Math.min(y, edges.bottom - LEAST); else edges.bottom = Math.max(y, edges.top + LEAST);
  return [[edges.left, edges.top], [edges.right, edges.top], [edges.right, edges.bottom], [edges.left, edges.bottom]];
}

function follow(event, step) {
  event.preventDefault();
  let last = place(event);
  const onMove = (move) => {
    const now = place(move);
    step(now, now[0] - last[0], now[1] - last[1]);
    last = now;
    drawCanvas();
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

function drawLine(svg, line, number) {
  const ink = INKS[number % INKS.length];
  const points = line.polygon.map(onPage);
  const [first, second] = points, last = points[points.length - 1];
  const group = make("g", { class: "line" + (number === chosen ? " chosen" : ""), "data-line": number }, svg);
  const body = make("polygon", {
    points: points.map((p) => p.join(",")).join(" "), fill: ink, "fill-opacity": 0.12, stroke: ink,
    "stroke-width": number === chosen ? 6 : 3, tabindex: 0, role: "button",
    "aria-label": "line " + (number + 1) + ": " + (line.text || "no text"),
  }, group);
  const count = Math.max(1, [...line.text].length);
  const wide = count * 60, tall = 100;
  const matrix = [
    (second[0] - first[0]) / wide, (second[1] - first[1]) / wide,
    (last[0] - first[0]) / tall, (last[1] - first[1]) / tall, first[0], first[1],
  ];
  const [family, weight] = FACES[line.font] || ["monospace", 700];
  const text = make("text", {
    transform: "matrix(" + matrix.join(" ") + ")", x: 0, y: 88, "font-size": 118, "font-family": family,
    "font-weight": weight, textLength: wide, lengthAdjust: "spacingAndGlyphs", fill: line.colour || "#222",
    stroke: "#fff", "stroke-width": 3, "paint-order": "stroke", "pointer-events": "none",
  }, group);
  text.textContent = line.text;
  body.addEventListener("pointerdown", (event) => {
    choose(number);
    follow(event, (now, dx, dy) => { line.polygon = moved(line.polygon, dx, dy); });
  });
  body.addEventListener("focus", () => { if (chosen !== number) choose(number); });
  body.addEventListener("keydown", (event) => onKey(event, line, number));
  if (number !== chosen) return;
  points.forEach((point, corner) => {
    const handle = make("circle", {
      cx: point[0], cy: point[1], r: 17, fill: "#fff", stroke: ink, "stroke-width": 6, "data-corner": corner,
    }, group);
    handle.addEventListener("pointerdown", (event) => {
      event.stopPropagation();
      follow(event, (now) => { line.polygon = pulled(line.polygon, corner, now); });
    });
  });
}

function drawHint(svg) {
  const hint = make("text", {
    x: WIDE / 2, y: high() / 2, "text-anchor": "middle", "font-size": 36, "font-family": "system-ui, sans-serif",
    fill: "#333", stroke: "#d9d9de", "stroke-width": 10, "paint-order": "stroke", "pointer-events": "none",
  }, svg);
  hint.textContent = (props.hints || [])[state.image ? 1 : 0] || "";
}

// Arrows move the chosen line by a hundredth, with Shift they resize it; Delete removes it.
function onKey(event, line, number) {
  const steps = { ArrowLeft: [-0.01, 0], ArrowRight: [0.01, 0], ArrowUp: [0, -0.01], ArrowDown: [0, 0.01] };
  if (event.key === "Delete") {
    remove(number);
  } else if (steps[event.key]) {
    event.preventDefault();
    const [dx, dy] = steps[event.key];
    const [x, y] = line.polygon[2];
    line.polygon = event.shiftKey ? pulled(line.polygon, 2, [x + dx, y + dy]) : moved(line.polygon, dx, dy);
    commit();
    drawCanvas();
    const again = element.querySelector(`g[data-line="${number}"] polygon`);
    if (again) again.focus();
  }
}

function choose(number) {
  chosen = number;
  drawCanvas();
  drawList();
}

function remove(number) {
  state.lines.splice(number, 1);
  chosen = Math.max(0, Math.min(chosen, state.lines.length - 1));
  commit();
  draw();
}

function add() {
  const count = state.lines.length;
  const top = Math.min(0.08 + 0.24 * (count % 4), 0.75);
  state.lines.push({
    text: props.blank ? "" : "TEXT", polygon: [[0.15, top], [0.85, top], [0.85, top + 0.18], [0.15, top + 0.18]],
    colour: null, font: null,
  });
  chosen = count;
  commit();
  draw();
}

function drawCanvas() {
  const holder = element.querySelector(".canvas");
  const focused = document.activeElement;
  holder.replaceChildren();
  const svg = make("svg", { viewBox: `0 0 ${WIDE} ${high()}`, role: "group", "aria-label": "layout" }, holder);
  make("rect", { x: 0, y: 0, width: WIDE, height: high(), fill: "#d9d9de" }, svg);
  if (state.image && state.image.startsWith("data:image/")) {
    make("image", { href: state.image, x: 0, y: 0, width: WIDE, height: high(), preserveAspectRatio: "none" }, svg);
  }
  const order = state.lines.map((_, number) => number).filter((number) => number !== chosen);
  if (chosen < state.lines.length) order.push(chosen);
  for (const number of order) drawLine(svg, state.lines[number], number);
  if (!state.lines.length) drawHint(svg);
  if (focused && focused.isConnected) focused.focus();
}

function list(options, value, label, set) {
  const select = document.createElement("select");
  select.setAttribute("aria-label", label);
  for (const [name, shown] of options) {
    const option = new Option(shown, name, false, (value || "") === name);
    select.add(option);
  }
  select.addEventListener("change", () => { set(select.value || null); commit(); drawCanvas(); });
  return select;
}

function drawList() {
  const holder = element.querySelector(".lines");
  holder.replaceChildren();
  state.lines.forEach((line, number) => {
    const row = document.createElement("div");
    row.className = "row" + (number === chosen ? " chosen" : "");
    row.style.borderColor = INKS[number % INKS.length];
    const text = document.createElement("input");
    text.value = line.text;
    text.setAttribute("aria-label", `text of line ${number + 1}`);
    text.placeholder = props.blank ? "empty: removes text" : "text";
    text.addEventListener("focus", () => {
      if (chosen !== number) { chosen = number; drawCanvas(); }
    });
    text.addEventListener("input", () => { line.text = text.value; commit(); drawCanvas(); });
    row.appendChild(text);
    const colours = [["", "colour: as prompted"], ...(props.colours || []).map((name) => [name, name])];
    const fonts = [["", "font: any"], ...(props.fonts || []).map((name) => [name, name])];
    row.appendChild(list(colours, line.colour, `colour of line ${number + 1}`, (value) => { line.colour = value; }));
    row.appendChild(list(fonts, line.font, `font of line ${number + 1}`, (value) => { line.font = value; }));
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Remove";
    button.setAttribute("aria-label", `remove line ${number + 1}`);
    button.addEventListener("click", () => remove(number));
    row.appendChild(button);
    holder.appendChild(row);
  });
}

function draw() {
  drawCanvas();
  drawList();
  button.disabled = Boolean(props.blank) && !state.image;
}

const button = element.querySelector(".add");
button.textContent = props.blank ? "Add a box" : "Add a line";
button.addEventListener("click", add);
watch("value", () => {
  if (props.value && !props.value.lines) {
    state.said = props.value.said;
    commit();
    return;
  }
  state = read();
  chosen = Math.max(0, Math.min(chosen, state.lines.length - 1));
  draw();
});
draw();
