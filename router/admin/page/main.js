// State, events and what is shown.

const STALE_SECONDS = 5, TIMELINE_MS = 15000, REQUESTS_MS = 5000, RECONNECT_MS = 5000;

const services = new Map(), rows = new Map();
let status = null, updatedAt = 0, openedAt = Date.now(), events = null;
let timeline = null, range = null, page = 0, onlyTroubled = false, detail = null, timelineTimer = 0;

const rangeWords = () => range === "hour" ? "1 hour" : "5 min";

// The list.

const orders = {
  name: () => 0,
  rate: service => sum(service, "requests_per_second"),
  queued: service => sum(service, "queued"),
  errors: service => sum(service, "refused_per_second") + replicasOf(service).reduce((all, [, replica]) => all + (replica.health?.errors || 0), 0),
  utilization: service => utilization(service) || 0,
};

function listed() {
  const filter = $("filter").value.trim().toLowerCase(), order = orders[$("order").value];
  const found = [];
  let troubles = 0;
  for (const service of services.values()) {
    const level = health(service)[0], isTroubled = level === "bad" || level === "warn";
    if (isTroubled) troubles += 1;
    if (service.name.toLowerCase().includes(filter) && (!onlyTroubled || isTroubled)) found.push([order(service), service]);
  }
  found.sort((a, b) => b[0] - a[0] || (a[1].name < b[1].name ? -1 : 1));
  return [found.map(([, service]) => service), troubles];
}

function arrange() {
  const [all, troubles] = listed();
  const pages = Math.max(1, Math.ceil(all.length / PER_PAGE));
  page = Math.min(page, pages - 1);
  const shown = all.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
  const list = $("services"), wanted = shown.map(service => rowOf(service.name).element);
  if (!shown.length) redraw(list, [services.size, onlyTroubled], emptyList);
  else if (!list.firstChild?.classList.contains("head")) { list.drawnFor = ""; list.replaceChildren(listHead()); }
  const present = [...list.children].slice(1);
  if (shown.length && (present.length !== wanted.length || wanted.some((element, i) => present[i] !== element))) {
    list.replaceChildren(list.firstChild, ...wanted);
    scheduleTimeline(100);
  }
  for (const service of shown) rowOf(service.name).update(service);
  for (const name of rows.keys()) if (!services.has(name)) rows.delete(name);
  segmented($("attention"), [[false, `All ${services.size}`], [true, `Need attention ${troubles}`]], onlyTroubled,
    value => { onlyTroubled = value; page = 0; arrange(); });
  $("pages").classList.toggle("hidden", pages < 2);
  redraw($("pages"), [page, pages, all.length], () => drawPages(pages, all.length));
}

function rowOf(name) {
  let row = rows.get(name);
  if (!row) { row = new ServiceRow(name); rows.set(name, row); if (timeline?.services[name]) row.showTimeline(timeline.services[name]); }
  return row;
}

function listHead() {
  const columns = ["Service", "Requests/s", "Latency p95", "Errors", "Waiting", "Replicas", "Utilization"];
  return h("div", "row head", ...columns.map((name, i) => i ? h("div", "metric", h("span", "", name)) : h("div", "", name)));
}

function emptyList() {
  if (!services.size) return h("div", "empty", h("b", "", "No services yet"), "Add one to the configuration file, or deploy a model with the router's labels.");
  return h("div", "empty", h("b", "", "No service matches"), onlyTroubled ? "All services are well." : "Change the filter.");
}

function drawPages(pages, all) {
  const button = (text, to) => {
    const element = h("button", "button", text);
    element.type = "button";
    element.disabled = to < 0 || to >= pages;
    element.addEventListener("click", () => { page = to; arrange(); $("services").scrollIntoView({ block: "nearest" }); });
    return element;
  };
  return [h("span", "", `${page * PER_PAGE + 1} to ${Math.min(all, (page + 1) * PER_PAGE)} of ${all}`), button("Previous", page - 1), button("Next", page + 1)];
}

// Timelines.

function scheduleTimeline(delay) {
  clearTimeout(timelineTimer);
  timelineTimer = setTimeout(fetchTimeline, delay);
}

async function fetchTimeline() {
  scheduleTimeline(TIMELINE_MS);
  if (document.hidden || range === null) return;
  const shown = [...$("services").querySelectorAll("[data-service]")];
  const names = detail ? [detail.name] : shown.map(element => element.dataset.service);
  const asked = range;
  try {
    const response = await fetch(`status/timeline?range=${range}` + names.map(name => "&service=" + encodeURIComponent(name)).join(""));
    if (!response.ok || asked !== range) return;
    timeline = withNames(await response.json());
  } catch { return; }
  for (const [name, points] of Object.entries(timeline.services)) rows.get(name)?.showTimeline(points);
  if (detail && timeline.services[detail.name]) detail.showTimeline(timeline.services[detail.name], timeline.seconds);
  drawTotals(status, timeline.total);
}

// Turns the columns of points into objects by field.
function withNames({ fields, total, services: byName, seconds }) {
  const named = columns => Object.fromEntries(fields.map((field, i) => [field, columns[i]]));
  const entries = Object.entries(byName).map(([name, columns]) => [name, named(columns)]);
  return { seconds, total: named(total), services: Object.fromEntries(entries) };
}

function chooseRange(value) {
  range = value;
  segmented($("range"), [["minutes", "5 min"], ["hour", "1 hour"]], range, chooseRange);
  scheduleTimeline(0);
}

// Which view.

function route() {
  const match = location.hash.match(/^#\/service\/(.+)$/);
  let name = "";
  try { name = match ? decodeURIComponent(match[1]) : ""; } catch { /* not a name */ }
  if (name && services.has(name)) {
    if (!detail || detail.name !== name) {
      detail = new Detail(name);
      $("detail").replaceChildren(detail.element);
      scrollTo(0, 0);
      scheduleTimeline(0);
    }
    detail.update(services.get(name), status);
  } else {
    if (detail) { detail = null; scheduleTimeline(0); }
    if (name) $("detail").replaceChildren(h("div", "small", link("#/", "← All services")),
      h("div", "card empty", h("b", "", `There is no service ${name}`), "It was removed, or its name has changed."));
  }
  $("overview").classList.toggle("hidden", Boolean(name));
  $("detail").classList.toggle("hidden", !name);
}

function draw() {
  const { router } = status;
  document.title = router.version ? "azureml-fe · " + (detail ? detail.name : "status") : "azureml-fe";
  setText($("version"), router.version);
  const pod = status.peers.length ? router.pod + (router.leads ? ", leader, " : ", ") : "";  // one router needs no name
  const scope = router.mode === "observe" ? "This router only observes: it neither serves nor scales models."
    : router.leads || !status.peers.length ? "" : "This router does not lead. The plots are those of all routers, but the current numbers are only its own.";
  $("scope").classList.toggle("hidden", !scope);
  setText($("scope"), scope);
  setText($("place"), pod + "up " + age(router.uptime_seconds));
  route();
  if (detail) return;
  drawProblems(status);
  drawTotals(status, timeline && timeline.total);
  arrange();
  drawActivity(status);
  drawSettings(status);
}

// Updates.

function applyUpdate(update, isWhole) {
  status = update;
  if (isWhole) services.clear();
  for (const name of update.gone || []) services.delete(name);
  for (const service of update.services) services.set(service.name, service);
  status.services = null;  // `services` has them; the update has only those that have changed
  setTroubled(update.problem_groups);
  updatedAt = Date.now();
  if (range === null) chooseRange(update.router.uptime_seconds > 900 ? "hour" : "minutes");
  if (!document.hidden) draw();
  showConnection();
}

function showConnection() {
  const silence = (Date.now() - (updatedAt || openedAt)) / 1e3, isLost = silence >= STALE_SECONDS;
  setText($("live"), isLost ? "offline" : updatedAt ? "live" : "connecting");
  setClass($("live"), "live " + (isLost ? "bad" : updatedAt ? "good" : ""));
  document.body.classList.toggle("stale", isLost);
  $("lost").classList.toggle("hidden", !isLost);
  const since = updatedAt ? `No connection to the router for ${age(silence)}. The numbers are those of ${clock(updatedAt / 1e3)}. ` : "";
  setText($("lost"), isLost ? (since || "The router does not respond. ") + "Trying to reconnect." : "");
}

function connect() {
  events = new EventSource("status/events");
  events.addEventListener("all", event => applyUpdate(JSON.parse(event.data), true));
  events.addEventListener("change", event => applyUpdate(JSON.parse(event.data), false));
  events.addEventListener("error", () => { if (events.readyState === EventSource.CLOSED) setTimeout(connect, RECONNECT_MS); });
}

$("tiles").append(...Object.values(tiles).map(tile => tile.element));
$("filter").addEventListener("input", () => { page = 0; arrange(); });
$("order").addEventListener("change", () => { page = 0; arrange(); });
addEventListener("hashchange", () => { if (status) draw(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden && status) { draw(); scheduleTimeline(0); } });
setInterval(showConnection, 1000);
setInterval(() => { if (detail && !document.hidden) detail.fetchRequests(); }, REQUESTS_MS);
connect();
