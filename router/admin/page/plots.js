// Plots: sparklines without axes, and plots with axes, a legend and a cursor. Values are oldest first; null is unknown.

const WIDTH = 100, HEIGHT = 30;

// Returns the path of a line, and of the area below it. Unknown values interrupt it.
function paths(values, max, height, steps) {
  const x = i => (values.length < 2 ? 0 : i / (values.length - 1) * WIDTH).toFixed(2);
  const y = value => (height - 1 - Math.min(value / max, 1) * (height - 2)).toFixed(2);
  let line = "", area = "", start = null;
  values.forEach((value, i) => {
    if (value === null) { start = null; return; }
    const isLast = i + 1 === values.length || values[i + 1] === null;
    if (start === null) { start = i; line += `M${x(i)} ${y(value)}`; area += `M${x(i)} ${height}L${x(i)} ${y(value)}`; }
    else { const step = (steps ? `H${x(i)}V${y(value)}` : `L${x(i)} ${y(value)}`); line += step; area += step; }
    if (isLast && start === i) { line += "h0.01"; }  // a single value is a dot
    if (isLast) area += `L${x(i)} ${height}Z`;
  });
  return [line, area];
}

class Sparkline {
  constructor(color) {
    this.area = svg("path", "area");
    this.line = svg("path", "line");
    const base = svg("line", "base", { x1: 0, x2: WIDTH, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 });
    this.element = svg("svg", color, { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      base, this.area, this.line);
  }
  show(values, { steps = false, max = 0 } = {}) {
    const highest = Math.max(max, ...values.filter(value => value !== null)) || 1;
    const isFlat = values.every(value => !value);
    const [line, area] = isFlat ? ["", ""] : paths(values, highest, HEIGHT, steps);
    this.line.setAttribute("d", line);
    this.area.setAttribute("d", area);
  }
}

// A number that ends a scale: 1, 2 or 5 times a power of ten.
function niceMax(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map(factor => factor * power).find(each => each >= value * 0.999);
}

const PLOT_HEIGHT = 60;

class Plot {
  // `series`: {field or values, name, color, area, steps, dash}; `format` returns a value as text. With `stacked`, values add up.
  constructor(title, series, format, { stacked = false, unitMax = 0, note = "" } = {}) {
    Object.assign(this, { series, format, stacked, unitMax, cursor: null });
    this.legend = series.map(each => {
      const value = h("b", "", "–");
      return { value, element: h("span", "legend", h("span", each.color, h("i", "")), each.name ? each.name + " " : "", value) };
    });
    this.shapes = series.map(each => svg("g", each.color, {}, svg("path", stacked ? "stack" : "area"),
      svg("path", "line" + (each.dash ? " dash" : ""))));
    this.cursorLine = svg("line", "cursor", { y1: 0, y2: PLOT_HEIGHT, visibility: "hidden" });
    const grid = [0.5, PLOT_HEIGHT / 2, PLOT_HEIGHT - 0.5].map(y => svg("line", "grid", { x1: 0, x2: WIDTH, y1: y, y2: y }));
    const drawing = svg("svg", "", { viewBox: `0 0 ${WIDTH} ${PLOT_HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": title },
      ...grid, ...this.shapes, this.cursorLine);
    this.max = h("span", "max");
    this.nothing = h("div", "nodata", h("span", "", "No data yet"));
    this.left = h("span", "");
    this.right = h("span", "", "now");
    const heading = h("h3", "", title, note ? h("span", "muted small", " " + note) : null);
    this.element = h("div", "card plot", h("div", "top", heading, ...this.legend.map(each => each.element)),
      h("div", "frame", drawing, this.max, this.nothing), h("div", "axis", this.left, this.right));
    drawing.addEventListener("pointermove", event => {
      const box = drawing.getBoundingClientRect();
      this.cursor = (event.clientX - box.left) / box.width;
      this.showValues();
    });
    drawing.addEventListener("pointerleave", () => { this.cursor = null; this.showValues(); });
  }

  show(columns, seconds) {
    this.columns = columns;
    this.seconds = seconds;
    let drawn = columns;
    if (this.stacked) {
      const below = columns[0].map(() => 0);
      drawn = columns.map(values => values.map((value, i) => value === null ? null : (below[i] += value)));
    }
    const known = drawn.flat().filter(value => value !== null);
    const max = niceMax(Math.max(this.unitMax, ...known));
    drawn.forEach((values, i) => {
      const [line, area] = paths(values, max, PLOT_HEIGHT, this.series[i].steps);
      const [areaPath, linePath] = this.shapes[i].children;
      areaPath.setAttribute("d", this.stacked ? columns[i].some(value => value) ? area : "" : this.series[i].area ? area : "");
      linePath.setAttribute("d", this.stacked ? "" : line);
    });
    if (this.stacked) for (const shape of [...this.shapes].reverse()) shape.parentNode.insertBefore(shape, this.cursorLine);
    setText(this.max, this.format(max));
    this.nothing.classList.toggle("hidden", known.length > 0);
    const length = columns[0].length * seconds;
    setText(this.left, age(length) + " ago");
    this.showValues();
  }

  showValues() {
    if (!this.columns) return;
    const last = this.columns[0].length - 1;
    const at = this.cursor === null ? last : Math.min(last, Math.max(0, Math.round(this.cursor * last)));
    this.legend.forEach(({ value }, i) => setText(value, this.columns[i][at] === null ? "–" : this.format(this.columns[i][at])));
    this.cursorLine.setAttribute("visibility", this.cursor === null ? "hidden" : "visible");
    for (const end of ["x1", "x2"]) this.cursorLine.setAttribute(end, at / Math.max(last, 1) * WIDTH);
    setText(this.right, this.cursor === null || at === last ? "now" : age((last - at) * this.seconds) + " ago");
  }
}
