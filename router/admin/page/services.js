// The overview: problems, totals, the list of services, decisions, and the parts of the router.

const PER_PAGE = 25;
const ERRORS = ["refused", "timeout", "failed", "rejected", "client_left"];
const ERROR_WORDS = { refused: "refused", timeout: "timed out", failed: "failed", rejected: "4xx", client_left: "client left" };

const sum = (service, name) => service.versions.reduce((total, version) => total + (version[name] || 0), 0);
const stateCount = (service, state) => service.versions.reduce((total, version) => total + (version.states[state] || 0), 0);
const replicasOf = service => service.versions.flatMap(version => version.replicas.map(replica => [version, replica]));
const isEjected = replica => Boolean(replica.health && replica.health.ejected_until);
function utilization(service) {
  const known = service.versions.map(version => version.utilization).filter(value => value !== null);
  return known.length ? Math.max(...known) : null;
}

// The state of a replica in words, and how bad it is.
function replicaState(replica) {
  if (isEjected(replica)) return ["bad", "ejected"];
  if (replica.state === "draining") return ["muted", "draining"];
  if (replica.state === "starting") {
    if (!replica.probe) return ["warn", "not ready"];  // this router does not know why: another one, or the kubelet, probes it
    return replica.probe.not_ready_reason ? ["bad", "not responding"] : ["warn", "starting"];
  }
  return replica.suspect_slots ? ["warn", "suspect"] : ["good", "ready"];
}

// The state of a service in words, and how bad it is. It is kept until the service, or the services with problems, change.
let healthOf = new WeakMap(), troubled = new Set(), troubledKey = "";
function health(service) {
  let known = healthOf.get(service);
  if (!known) healthOf.set(service, known = assess(service));
  return known;
}
function setTroubled(groups) {
  const names = groups.flatMap(group => group.services), key = names.join();
  if (key !== troubledKey) { troubledKey = key; troubled = new Set(names); healthOf = new WeakMap(); }
}

// The worst comes first.
function assess(service) {
  const ready = stateCount(service, "ready"), desired = sum(service, "desired"), starting = stateCount(service, "starting");
  const states = replicasOf(service).map(([, replica]) => replicaState(replica)[1]);
  const dead = states.filter(state => state === "not responding").length, ejected = states.filter(state => state === "ejected").length;
  const refused = sum(service, "refused_per_second"), queued = sum(service, "queued");
  if (!ready && !desired && !starting && !sum(service, "minimum")) return ["idle", "scaled to zero"];
  if (!ready && dead) return ["bad", dead === 1 ? "not responding" : `none of ${dead} replicas responds`];
  if (!ready && troubled.has(service.name)) return ["bad", "cannot start"];
  if (!ready) return starting ? ["warn", states.includes("not ready") ? "not ready" : "starting"] : ["bad", "no replica"];
  if (refused) return ["bad", `refuses ${number(refused)} requests/s`];
  if (ejected) return ["bad", count(ejected, "replica") + " ejected"];
  if (dead) return ["bad", count(dead, "replica") + " not responding"];
  if (troubled.has(service.name)) return ["warn", "see problems"];
  if (queued && (utilization(service) || 0) > 1) return ["warn", `${number(queued)} waiting for a replica`];
  if (ready < desired) return ["warn", `${ready} of ${count(desired, "replica")} ready`];
  return ["good", `${count(ready, "replica")} ready`];
}

class ServiceRow {
  constructor(name) {
    this.name = name;
    this.dot = h("span", "dot");
    this.state = h("span", "");
    const label = h("b", "", name);
    label.title = name;
    this.rate = h("b", ""); this.latency = h("b", ""); this.errors = h("b", "");
    this.queue = h("b", ""); this.replicas = h("b", ""); this.used = h("b", "");
    this.rateLine = new Sparkline("c-accent");
    this.latencyLine = new Sparkline("c-accent");
    this.errorLine = new Sparkline("c-bad");
    this.fill = h("i", ""); this.target = h("u", "");
    this.meter = h("div", "meter", this.fill, this.target);
    const metric = (value, unit, plot) => h("div", "metric", h("div", "", value, h("span", "unit", " " + unit)), plot);
    this.element = toService(name,
      h("div", "name", this.dot, h("div", "", label, this.state)),
      metric(this.rate, "req/s", this.rateLine.element), metric(this.latency, "p95", this.latencyLine.element),
      metric(this.errors, "errors", this.errorLine.element), metric(this.queue, "waiting"), metric(this.replicas, "replicas"),
      metric(this.used, "utilization", this.meter));
    this.element.className = "row";
    this.element.dataset.service = name;
  }

  update(service) {
    const [level, words] = health(service);
    setClass(this.dot, "dot " + level);
    setClass(this.state, level === "bad" || level === "warn" ? level : "");
    setText(this.state, words);
    setTitle(this.state, words);
    setText(this.rate, number(sum(service, "requests_per_second")));
    const queued = sum(service, "queued");
    setText(this.queue, number(queued));
    setClass(this.queue, queued ? "warn" : "muted");
    const ready = stateCount(service, "ready"), desired = sum(service, "desired");
    setText(this.replicas, ready === desired ? String(ready) : `${ready} / ${desired}`);
    const used = ready ? utilization(service) : null, target = service.versions[0].target;
    setText(this.used, load(used));
    setTitle(this.meter.parentNode, ready ? loadExplained(used, target) : "No replica is ready.");
    setClass(this.meter, used !== null && used > target ? "meter over" : "meter");
    this.fill.style.width = Math.min(100, (used || 0) * 100).toFixed(1) + "%";
    this.target.style.left = `calc(${target * 100}% - 1px)`;
    this.target.hidden = used === null;
  }

  showTimeline(points) {
    const { requests, p95 } = points, errors = errorRates(points);
    this.rateLine.show(requests);
    this.latencyLine.show(p95);
    this.errorLine.show(errors);
    const failing = latest(errors), rate = latest(requests);
    setText(this.latency, duration(latest(p95)));
    setClass(this.latency, latest(p95) === null ? "muted" : "");
    setText(this.errors, rate ? percent(failing / rate) : "–");
    setClass(this.errors, failing ? "bad" : "muted");
    setTitle(this.errors.parentNode.parentNode, errorWords(points));
  }
}

const latest = values => values.length ? values[values.length - 1] : null;
const errorRates = points => points.requests.map((value, i) => value === null ? null : ERRORS.reduce((total, kind) => total + points[kind][i], 0));
function errorWords(points) {
  const kinds = ERRORS.filter(kind => latest(points[kind])).map(kind => `${number(latest(points[kind]))}/s ${ERROR_WORDS[kind]}`);
  return kinds.length ? kinds.join(", ") : "no errors";
}

class Tile {
  constructor(label, color) {
    this.value = h("div", "value", "–");
    this.note = h("div", "note");
    this.plot = new Sparkline(color);
    this.element = h("div", "tile", h("div", "label", label), this.value, this.note, this.plot.element);
  }
  show(value, note, mark = "") {
    setText(this.value, value);
    setClass(this.value, mark ? "value " + mark : "value");
    setText(this.note, unbroken(note));
    setTitle(this.note, note);
  }
}

const tiles = { rate: new Tile("Requests per second", "c-accent"), latency: new Tile("Latency (p95)", "c-accent"), errors: new Tile("Errors", "c-bad"),
  queue: new Tile("Waiting requests", "c-warn"), replicas: new Tile("Replicas ready", "c-accent"), used: new Tile("Utilization", "c-accent") };

function drawTotals(status, points) {
  const { totals } = status;
  const known = points && points.requests;
  const failing = known ? latest(errorRates(points)) : null, rate = known ? latest(points.requests) : null;
  tiles.rate.show(number(totals.requests_per_second), `${number(totals.in_flight)} in flight`);
  tiles.latency.show(duration(known ? latest(points.p95) : null),
    known && latest(points.p50) !== null ? `p50\u00a0${duration(latest(points.p50))} · p99\u00a0${duration(latest(points.p99))}` : "no requests");
  tiles.errors.show(rate ? percent(failing / rate) : "–", rate ? failing ? errorWords(points) : "none" : "no requests", failing ? "bad" : "");
  tiles.queue.show(number(totals.queued), totals.refused_per_second ? `${number(totals.refused_per_second)} refused/s` : "none refused",
    totals.refused_per_second ? "bad" : totals.queued ? "warn" : "");
  let desired = 0;
  for (const service of services.values()) desired += sum(service, "desired");
  tiles.replicas.show(number(totals.replicas_ready), totals.replicas_ready < desired ? `${number(desired)} wanted` : "as many as wanted");
  const used = known ? latest(points.utilization) : null;
  tiles.used.show(load(used), used === null ? "not known yet" : used > 1.005 ? `demand is ${number(used)}× capacity` : "of ready replicas");
  if (!known) return;
  tiles.rate.plot.show(points.requests);
  tiles.latency.plot.show(points.p95);
  tiles.errors.plot.show(errorRates(points));
  tiles.queue.plot.show(points.queued);
  tiles.replicas.plot.show(points.ready, { steps: true });
  tiles.used.plot.show(points.utilization, { max: 1 });
}

function drawProblems(status) {
  const groups = status.problem_groups;
  const total = groups.reduce((problems, group) => problems + group.problems, 0);
  $("problems").classList.toggle("hidden", !groups.length);
  // Notes and output change every second; an open group must stay open.
  const box = $("problems"), key = groups.map(group => [group.problems, group.services, group.cause, group.output !== ""]);
  redraw(box, key, () => h("div", "alert", h("h2", "bad", count(total, "problem")), ...groups.map(drawProblem)));
  groups.forEach((group, i) => {
    const element = box.querySelectorAll(".problem")[i];
    setText(element.querySelector(".first"), withNote(group));
    if (group.output) setText(element.querySelector("pre"), group.output);
  });
  const inForce = status.router.config_in_force;
  $("errors").classList.toggle("hidden", inForce);
  redraw($("errors"), status.config_errors.slice(0, 3), () => h("div", "alert",
    h("h2", "bad", "The changed settings are not in use"), h("div", "muted small", "They were rejected, and the previous ones stay in force."),
    ...status.config_errors.slice(0, 3).map(each => h("div", "problem", h("span", "muted nowrap", clock(each.time)), h("div", "what", each.error)))));
}
const withNote = group => group.note ? `${group.cause} (${group.note})` : group.cause;

function drawProblem(group) {
  const all = group.services.length + group.more_services;
  const chips = group.services.slice(0, 6).map(name => h("span", "chip", toService(name, name)));
  const [name] = group.services;
  const subject = all > 1 ? h("b", "", `${all} services: `) : all ? h("span", "", toService(name, name), ": ") : null;
  const times = group.problems > Math.max(all, 1) ? h("span", "muted", ` and ${group.problems - 1} more like this`) : null;
  const element = h("div", "problem", h("div", "what", subject, h("span", "first", withNote(group)), times),
    all > 1 ? h("div", "chips", ...chips, all > chips.length ? h("span", "muted", `and ${all - chips.length} more`) : null) : null);
  if (group.output) element.append(h("details", "", h("summary", "", all > 1 ? `Details of ${name}` : "Details"), h("pre", "", group.output)));
  return element;
}

// The reason of a scaling decision without its numbers, which the title has.
function outcome(reason) {
  const words = reason.slice(reason.lastIndexOf("): ") + 1).replace(/^: /, "");
  const element = h("span", "muted", unbroken(words));
  element.title = reason;
  return element;
}

function drawActivity(status) {
  const decisions = status.decisions.slice(0, 6);
  redraw($("decisions"), decisions, () => decisions.length ? table([["Time", "nowrap"], ["Service"], ["Replicas", "n"], ["Reason", "text"]],
    decisions.map(each => [clock(each.time), each.version === "default" ? each.service : `${each.service} (${each.version})`,
      h("span", each.direction === "up" ? "" : "muted", (each.direction === "up" ? "↑ " : "↓ ") + each.desired), outcome(each.reason)]), true)
    : h("div", "empty", h("b", "", "No decisions yet"), "The number of replicas has not changed."));
  const alone = !status.peers.length;
  setText($("routertitle"), alone ? "Workers of the router" : "Workers of this router");
  const workers = status.workers.map(each => [each.name, each.pid, each.state, age(each.age_seconds), each.in_flight, each.queued]);
  redraw($("workers"), workers, () => table([["Worker"], ["Process", "n"], ["State"], ["Running for", "n"], ["In flight", "n"], ["Queued", "n"]],
    workers.map(row => row.map((value, i) => i === 2 ? h("span", value === "accepting" ? "good" : "warn", value) : value))));
  const standing = each => each.standing === "live" ? h("span", "good", "connected") : h("span", "bad", each.standing);
  redraw($("peers"), status.peers, () => alone ? [] : [h("h2", "", "Other routers"),
    table([["Router"], ["Connection"], ["Manages", "n"], ["TLS", "n"]], status.peers.map(each =>
      [each.name, standing(each), count(each.services_owned, "service"), each.encrypted ? "yes" : "no"]))]);
}

function drawSettings(status) {
  const { settings, dynamic_config: dynamic } = status, changes = status.config_changes.slice(0, 10);
  $("configuration").classList.toggle("hidden", !settings.length && !dynamic && !changes.length);
  redraw($("dynamic"), dynamic, () => dynamic ? h("div", "small", h("b", "", "Dynamic configuration: "), dynamic.source, h("span", "muted",
    dynamic.applied_at ? `, version ${dynamic.etag} since ${clock(dynamic.applied_at)}` : ", none in effect")) : []);
  redraw($("settings"), settings, () => table([["Setting", "nowrap"], ["Value"], ["Source", "text"]], settings.map(each => [each.name,
    settingText(each.value) + ("at_next_start" in each ? ` (at the next start: ${settingText(each.at_next_start)})` : ""),
    h("span", "muted", each.source)]), true));
  redraw($("changes"), changes, () => changes.length ? [h("h2", "", "Latest changes"), ...changes.map(each =>
    h("div", "small", h("span", "muted nowrap", clock(each.time) + " "), each.change))] : []);
}
const settingText = value => value === null ? "none" : Array.isArray(value) ? value.join(",") || "none" : String(value);
