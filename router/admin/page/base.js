// Elements, numbers and words.

const $ = id => document.getElementById(id);

// Returns an element. Names come from outside: strings are added as text, never as markup.
function h(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  for (const child of children) if (child !== null && child !== undefined && child !== "") element.append(child);
  return element;
}

function svg(tag, className, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  if (className) element.setAttribute("class", className);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function link(href, ...children) {
  const element = h("a", "", ...children);
  element.href = href;
  return element;
}

const toService = (name, ...children) => link("#/service/" + encodeURIComponent(name), ...children);

// The DOM is written only where something has changed: most of it is the same every second.
function setText(element, text) { if (element.textContent !== text) element.textContent = text; }
function setClass(element, name) { if (element.className !== name) element.className = name; }
function setTitle(element, text) { if (element.title !== text) element.title = text; }

// Replaces the content of an element when the data that it shows has changed.
function redraw(element, data, draw) {
  const key = JSON.stringify(data);
  if (element.drawnFor !== key) { element.drawnFor = key; element.replaceChildren(...[draw()].flat()); }
}

function segmented(element, options, chosen, onChoose) {
  redraw(element, [options, chosen], () => options.map(([value, text]) => {
    const button = h("button", "", text);
    button.type = "button";
    button.setAttribute("aria-pressed", String(value === chosen));
    button.addEventListener("click", () => onChoose(value));
    return button;
  }));
}

function number(n) {
  if (n === null || n === undefined) return "–";
  if (n >= 1e6) return (n / 1e6).toFixed(n < 1e7 ? 1 : 0) + "M";
  if (n >= 1e4) return (n / 1e3).toFixed(n < 1e5 ? 1 : 0) + "k";
  if (n >= 100 || Number.isInteger(n)) return n.toFixed(0);
  return n >= 0.1 ? n.toFixed(1) : n >= 0.005 ? n.toFixed(2) : "0";
}
const percent = n => n === null ? "–" : n > 0 && n < 0.001 ? "<0.1 %" : (n * 100).toFixed(n && n < 0.0995 ? 1 : 0) + " %";
function duration(s) {
  if (s === null || s === undefined) return "–";
  if (s < 1e-3) return "<1 ms";
  if (s < 0.9995) return (s * 1e3).toFixed(s < 0.01 ? 1 : 0) + " ms";
  return Number.isInteger(s) ? s + " s" : s < 9.995 ? s.toFixed(2) + " s" : s < 99.95 ? s.toFixed(1) + " s" : s.toFixed(0) + " s";
}
function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (n >= 999.5 && unit < units.length - 1) { n /= 1000; unit += 1; }
  return (unit && n < 10 ? n.toFixed(1) : n.toFixed(0)) + " " + units[unit];
}
function age(s) {
  if (s < 90) return Math.round(s) + " s";
  if (s < 5400) return Math.round(s / 60) + " min";
  return s < 1.3e5 ? (s / 3600).toFixed(1) + " h" : Math.round(s / 86400) + " days";
}
const clock = t => new Date(t * 1e3).toLocaleTimeString();
const count = (n, thing) => `${n} ${thing}${n === 1 ? "" : "s"}`;

// Keeps a number and its unit on one line.
const unbroken = text => text.replace(/(\d) (ms|s|%|min)\b/g, "$1\u00a0$2");

// Utilization in words: a queue may be many times as long as there is capacity.
function load(utilization) {
  if (utilization === null) return "–";
  return utilization <= 1.005 ? Math.round(utilization * 100) + " %" : "full";
}
const loadFactor = n => n <= 1.005 ? percent(n) : number(n) + "×";
function loadExplained(utilization, target) {
  if (utilization === null) return "The number of concurrent requests is not limited.";
  const aim = target === undefined ? "" : ` The target is ${Math.round(target * 100)} %.`;
  if (utilization <= 1.005) return `${Math.round(utilization * 100)} % of the capacity of the ready replicas is in use.${aim}`;
  return `The demand is ${number(utilization)} times the capacity of the ready replicas.${aim}`;
}

// `columns` are names and classes: `n` for numbers, `text` for sentences. A table that `flows` has no columns on a phone.
function table(columns, rows, flows = false) {
  const cells = (tag, values) => values.map((value, i) => h(tag, columns[i][1] || "", value instanceof Node ? value : String(value)));
  return h("div", flows ? "scroll flow" : "scroll", h("table", "", h("thead", "", h("tr", "", ...cells("th", columns.map(c => c[0])))),
    h("tbody", "", ...rows.map(row => h("tr", "", ...cells("td", row))))));
}
