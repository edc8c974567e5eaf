// One service: its plots, versions, replicas, requests, and how to call it.

const BY_REQUEST = [["Time", "nowrap"], ["Status", "nowrap"], ["Duration", "n"], ["In the queue", "n"], ["Replica"], ["", "n"]];

class Detail {
  constructor(name) {
    this.name = name;
    this.dot = h("span", "dot");
    this.state = h("span", "muted");
    this.facts = h("section", "card facts");
    this.plots = [
      [["requests"], new Plot("Requests per second", [{ color: "k-blue", area: true }], number)],
      [["p99", "p95", "p50"], new Plot("Latency", [{ name: "p99", color: "k-gray" }, { name: "p95", color: "k-violet" },
        { name: "p50", color: "k-blue", area: true }], duration)],
      [ERRORS, new Plot("Errors per second", [{ name: "refused", color: "k-amber" }, { name: "timeout", color: "k-violet" },
        { name: "failed", color: "k-red" }, { name: "4xx", color: "k-gray" }, { name: "client left", color: "k-teal" }], number, { stacked: true })],
      [["ready", "desired", "needed"], new Plot("Replicas", [{ name: "ready", color: "k-blue", area: true, steps: true },
        { name: "wanted", color: "k-gray", steps: true }, { name: "needed", color: "k-amber", steps: true, dash: true }], number)],
      [["utilization", "target"], new Plot("Utilization", [{ color: "k-blue", area: true }, { name: "target", color: "k-gray", dash: true }],
        loadFactor, { unitMax: 1, note: "of ready replicas" })],
      [["queued"], new Plot("Waiting requests", [{ color: "k-amber", area: true }], number)],
    ];
    this.versions = h("div", ""); this.replicas = h("div", ""); this.requests = h("div", ""); this.call = h("div", "curl");
    const heading = h("div", "title", this.dot, h("h1", "", name), this.state);
    this.element = h("div", "", h("div", "small", link("#/", "← All services")), heading, this.facts,
      h("div", "plots", ...this.plots.map(([, plot]) => plot.element)),
      h("section", "card", h("h2", "", "Versions"), this.versions), h("section", "card", h("h2", "", "Replicas"), this.replicas),
      h("section", "card", h("h2", "", "Failed and slow requests"), this.requests), h("section", "card", h("h2", "", "Call it"), this.call));
    this.element.style.display = "contents";
    this.points = null;
    this.fetchRequests();
  }

  update(service, status) {
    this.service = service;
    const [level, words] = health(service);
    setClass(this.dot, "dot " + level);
    setText(this.state, words);
    setClass(this.state, level === "bad" || level === "warn" ? level : "muted");
    this.drawFacts(status);
    redraw(this.versions, service.versions.map(version => ({ ...version, replicas: null })), () => this.drawVersions());
    redraw(this.replicas, replicasOf(service).map(([version, replica]) => [version.name, replica]), () => this.drawReplicas());
    redraw(this.call, [service.authentication, service.key_header, status.router.scoring_url], () => this.drawCall(status));
  }

  showTimeline(points, seconds) {
    this.points = points;
    this.seconds = seconds;
    const target = this.service ? this.service.versions[0].target : null;
    for (const [fields, plot] of this.plots)
      plot.show(fields.map(field => field === "target" ? points.requests.map(() => target) : points[field]), seconds);
    if (status) this.drawFacts(status);
  }

  drawFacts(status) {
    const { service, points } = this;
    const total = field => points ? points[field].reduce((all, value) => all + (value || 0), 0) * this.seconds : null;
    const whole = value => value === null ? "–" : number(Math.round(value));
    const abandoned = sum(service, "abandoned");
    const facts = [["requests/s now", number(sum(service, "requests_per_second"))], ["in flight", number(sum(service, "in_flight"))],
      ["waiting", number(sum(service, "queued"))], ...abandoned ? [["abandoned, still at a replica", number(abandoned)]] : [],
      [`requests, ${rangeWords()}`, whole(total("requests"))], ["refused", whole(total("refused"))],
      ["failed or timed out", points ? whole(total("failed") + total("timeout")) : "–"], ["retries", whole(total("retries"))],
      ["received", points ? bytes(total("request_bytes")) : "–"], ["sent", points ? bytes(total("response_bytes")) : "–"],
      ...status.peers.length ? [["slots managed by", service.owner === status.router.pod ? "this router" : service.owner]] : []];
    redraw(this.facts, facts, () => facts.map(([label, value]) => h("div", "", h("span", "", label), h("b", "", value))));
  }

  drawVersions() {
    const columns = [["Version"], ["Traffic", "n"], ["Requests/s", "n"], ["In flight", "n"], ["Waiting", "n"], ["Utilization", "n"], ["Target", "n"],
      ["Replicas", "n"], ["Allowed", "n"], ["Scaling", "text"]];
    const of = (part, all) => all === null || part === all ? part : `${part} of ${all}`;
    return table(columns, this.service.versions.map(version => [versionCell(version), version.traffic_percent + " %",
      number(version.requests_per_second), of(version.in_flight, version.slots), version.queued, load(version.utilization),
      percent(version.target), of(version.states.ready, version.desired),
      version.autoscaled ? `${version.minimum}–${version.maximum}` : "fixed",
      version.autoscaled ? outcome(version.reason || "") : h("span", "muted", "off")]));
  }

  drawReplicas() {
    const { service } = this, several = service.versions.length > 1, rows = replicasOf(service);
    const shown = rows.length, all = ["ready", "starting", "draining"].reduce((total, state) => total + stateCount(service, state), 0);
    if (!shown) return h("div", "empty", h("b", "", "No replicas"), "The service is scaled to zero, or its replicas cannot start.");
    const columns = [["Replica"], ...several ? [["Version"]] : [], ["Address", "nowrap"], ["State"], ["In flight", "n"], ["Errors", "n"],
      ["Last error"], ["Last probe"]];
    const list = table(columns, rows.map(([version, replica]) => [replica.id, ...several ? [version.name] : [],
      h("span", "mono", replica.address || "–"), replicaStateCell(replica),
      replica.slots ? `${replica.in_flight} of ${replica.slots}` : replica.in_flight, replica.health ? replica.health.errors : 0,
      replica.health?.last_error || h("span", "muted", "none"), probeWords(replica)]));
    return all > shown ? [list, h("div", "muted small", `${shown} of ${all} replicas are shown.`)] : [list];
  }

  drawCall(status) {
    const { service } = this;
    const base = status.router.scoring_url.replace(/\/\/(0\.0\.0\.0|\[::\])/, () => "//" + location.hostname);
    const url = `${base}${service.name}/score`;
    const header = service.key_header.toLowerCase() === "authorization" ? "Authorization: Bearer $KEY" : `${service.key_header}: $KEY`;
    const lines = [`curl ${url}`, ...service.authentication === "none" ? [] : [`-H "${header}"`],
      "-H 'Content-Type: application/json'", "-d '{\"data\": []}'"];
    const command = lines.join(" \\\n  ");
    const copy = h("button", "button", "Copy");
    copy.type = "button";
    copy.addEventListener("click", async () => {
      try { await navigator.clipboard.writeText(command); copy.textContent = "Copied"; }
      catch { getSelection().selectAllChildren(copy.previousSibling); copy.textContent = "Press Ctrl+C"; }
      setTimeout(() => { copy.textContent = "Copy"; }, 2000);
    });
    const hint = service.authentication === "none" ? "The service needs no key."
      : service.authentication === "tokens" ? `KEY is a token: azureml-fe token ${service.name}` : `KEY is a key: azureml-fe keys show ${service.name}`;
    const where = url.includes("$ROUTER") ? ". ROUTER is the address of the router's Service." : "";
    return [h("pre", "", command), copy, h("div", "muted small", hint, where),
      h("div", "small", link("metrics", "Metrics"), " · ", link("capacity/" + encodeURIComponent(service.name), "Free capacity"))];
  }

  async fetchRequests() {
    try {
      const response = await fetch("status/requests?service=" + encodeURIComponent(this.name));
      if (!response.ok) return;
      const listed = await response.json();
      redraw(this.requests, listed, () => this.drawRequests(listed));
    } catch { /* the banner says that the connection is lost */ }
  }

  drawRequests(listed) {
    if (!listed.failed.length && !listed.slow.length)
      return h("div", "empty", h("b", "", "No requests yet"), "Failed and slow requests appear here, with explanations.");
    const rows = entries => entries.slice(0, 10).map(each => [clock(each.time),
      h("span", each.status >= 500 ? "bad" : each.status >= 400 ? "warn" : "", `${each.status} ${each.error || ""}`),
      duration(each.seconds), each.queued_seconds ? duration(each.queued_seconds) : "–", each.replica || "–",
      link("explain/" + each.id, "Explain")]);
    const part = (title, entries, none) =>
      h("div", "", h("h3", "", title), entries.length ? table(BY_REQUEST, rows(entries)) : h("div", "muted small", none));
    const box = h("div", "columns pair", part("Last failed", listed.failed, "None failed."),
      part("Slowest of the last 10 minutes", listed.slow, "None in this time."));
    return status && status.peers.length ? [box, h("div", "muted small", "Of the requests that this router handled.")] : [box];
  }
}

// The name of a version, with what its owner says about it.
function versionCell(version) {
  const pairs = Object.entries({ ...version.tags, ...version.properties }).map(([name, value]) => `${name}: ${value}`);
  const about = [...version.description ? [version.description] : [], ...pairs];
  return about.length ? h("div", "", version.name, h("div", "muted small", about.join(" · "))) : version.name;
}

function replicaStateCell(replica) {
  const [level, words] = replicaState(replica);
  const parts = [words];
  if (replica.suspect_slots && words !== "suspect") parts.push(count(replica.suspect_slots, "suspect slot"));
  if (replica.abandoned) parts.push(`${replica.abandoned} abandoned`);
  if (isEjected(replica)) parts.push(`until ${clock(replica.health.ejected_until)}: ${replica.health.ejected_for}`);
  const element = h("span", level, parts.join(", "));
  if (words === "suspect") element.title = "The replica may still work on a request whose client has left or got 504. It is used last.";
  return element;
}

function probeWords(replica) {
  const { probe } = replica;
  if (probe) return h("span", probe.failure ? "bad" : "", `${probe.failure || "ok"}, ${clock(probe.time)}`);
  return replica.health?.last_probe ? `connect: ${replica.health.last_probe}` : h("span", "muted", "–");
}
