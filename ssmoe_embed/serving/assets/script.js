"use strict";
// Everything that comes from documents goes through textContent; nothing is ever parsed as HTML.
const find = (id) => document.getElementById(id);
const make = (tag, className, text) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
};
const LIGHT = ["#0072b2", "#d55e00", "#009e73", "#b8469b", "#8a6d00", "#5b4fc7", "#8c564b", "#c23b3b", "#5f7d1f", "#3d8fb8", "#0e8a8a", "#6b7280"];
const DARK = ["#56b4e9", "#f0883e", "#3fd0a0", "#e58ac8", "#e3c84a", "#a99cff", "#d4a59a", "#ff8080", "#b0d060", "#8fd3f4", "#5fdede", "#a8b0ba"];
const dark = matchMedia("(prefers-color-scheme: dark)");
const state = { map: null, byId: new Map(), hits: [], only: null, near: null, open: null, query: "", run: 0, view: { x: 0, y: 0, zoom: 1 } };

const LABELS = { q: "What you look for", top: "Results", filter: "Filter" };  // what the page calls the API's parameters

async function ask(path, parameters) {
  const address = new URL(path, location.href);
  for (const [name, value] of parameters || []) address.searchParams.append(name, value);
  const headers = { accept: "application/json" };
  const secret = sessionStorage.getItem("key");
  if (secret) headers.authorization = `Bearer ${secret}`;
  const response = await fetch(address, { headers }).catch(() => { throw new Error("The server does not answer; start it again with ssmoe serve."); });
  const body = await response.json().catch(() => ({}));
  if (response.status === 401) {
    find("key").hidden = false;
    throw new Error(secret ? "That is not the key of this server." : "This server asks for a key.");
  }
  if (!response.ok) throw new Error(body.error ? named(body.error) : `The server answered ${response.status}.`);
  return body;
}

// An error's message with the field's label in place of the parameter's name.
function named({ message, param }) {
  const label = LABELS[param];
  if (!label) return message;
  const [first, ...rest] = message.split(/\b/);
  return first === param ? [label, ...rest].join("") : `${label}: ${message}`;
}

function say(text, wrong) {
  find("status").textContent = text;
  find("status").classList.toggle("wrong", Boolean(wrong));
}

// --- search ------------------------------------------------------------------------------------------------------------
async function search(query, keep) {
  const run = ++state.run;
  query = query.trim();
  state.query = query;
  find("query").value = query;
  closeDocument();
  if (!keep) history.pushState(null, "", query ? `?q=${encodeURIComponent(query)}` : location.pathname);
  document.title = query ? `${query} – ssmoe search` : "ssmoe search";
  if (!query) { show([]); say("Type a question, or click a point of the map."); return; }
  say("Searching…");
  const parameters = [["q", query], ["top", find("top").value]];
  const filter = find("filter").value.trim();
  if (filter) parameters.push(["filter", filter]);
  parameters.push(["mode", find("mode").value]);
  try {
    const answer = await ask("api/search", [...parameters, ["snippets", "false"]]);
    if (run !== state.run) return;  // a later search has begun
    show(answer.hits);
    const weak = answer.hits.length && answer.hits[0].weak ? "No document fits well; these are the nearest. " : "";
    say(answer.hits.length ? `${weak}${answer.hits.length} of ${answer.documents.toLocaleString("en")} documents in ${answer.milliseconds} ms` : "Nothing found.");
    const marked = await ask("api/search", parameters).catch(() => null);  // the best sentences take longer than the hits
    if (marked) mark(run, marked);
  } catch (error) {
    if (run === state.run) { show([]); say(error.message, true); }
  }
}

// Shows the best sentences of hits that are there already.
function mark(run, answer) {
  if (run !== state.run) return;
  const items = new Map([...find("hits").children].map((item) => [item.dataset.id, item]));
  for (const hit of answer.hits) {
    const item = items.get(hit.id);
    if (item) item.querySelector(".snippet").replaceWith(snippet(hit));
  }
}

function snippet(hit) {
  const line = make("p", "snippet");
  for (const part of hit.snippet) line.append(part.best ? make("mark", "", part.text) : part.text);
  return line;
}

function show(hits) {
  state.hits = hits;
  state.near = null;
  find("hits").replaceChildren(...hits.map(card));
  find("to-hits").hidden = !hits.some((hit) => hit.point);
  draw();
}

function card(hit, index) {
  const item = make("li", "hit");
  item.dataset.id = hit.id;
  const top = make("div", "top");
  const title = make("button", "title", hit.title || hit.id);
  title.type = "button";
  title.addEventListener("click", () => openDocument(hit.id));
  top.append(make("span", "rank", `${index + 1}`), title, score(hit));
  item.append(top);
  if (hit.image) item.append(thumbnail(hit));
  item.append(snippet(hit));
  if (hit.source) item.append(sourceLine(hit.source));
  for (const name of ["pointerenter", "focusin"]) item.addEventListener(name, () => approach(hit.id));
  for (const name of ["pointerleave", "focusout"]) item.addEventListener(name, () => approach(null));
  return item;
}

function score(hit) {
  const found = make("span", "score", hit.similarity == null ? "" : hit.similarity.toFixed(2));
  found.title = "cosine similarity to the query";
  if (hit.words != null) {
    const words = make("small", "", `words ${Math.round(100 * hit.words)}%`);
    words.title = "share of the query's words that the document has, by their weight";
    found.append(words);
  }
  return found;
}

function thumbnail(entry) {
  const image = make("img", "thumbnail");
  image.src = `api/image?id=${encodeURIComponent(entry.id)}`;
  image.alt = entry.title || entry.id;
  image.loading = "lazy";
  return image;
}

function sourceLine(source) {
  const line = make("p", "source");
  if (/^https?:\/\//i.test(source)) {
    const link = make("a", "", source);
    link.href = source;
    link.rel = "noopener noreferrer";
    line.append(link);
  } else {
    line.textContent = source;
  }
  return line;
}

// --- one document ------------------------------------------------------------------------------------------------------
async function openDocument(id) {
  try {
    const entry = await ask("api/document", [["id", id]]);
    const box = find("document");
    const similar = make("button", "", "Find similar");
    const close = make("button", "", "Close");
    similar.type = close.type = "button";
    similar.addEventListener("click", () => search(entry.title || entry.text.slice(0, 300)));
    close.addEventListener("click", closeDocument);
    const actions = make("div", "actions");
    actions.append(similar, close);
    const facts = Object.entries(entry.metadata).map(([name, value]) => `${name}: ${value}`).join(" · ");
    box.replaceChildren(make("strong", "", entry.title || entry.id), make("p", "text", entry.text));
    if (entry.image) box.append(thumbnail(entry));
    if (entry.source) box.append(sourceLine(entry.source));
    if (facts) box.append(make("p", "source", facts));
    const reasons = make("div", "reasons");
    box.append(reasons, actions);
    if (state.query) explain(id, reasons);
    box.hidden = false;
    state.open = id;
    box.focus();
    box.scrollIntoView({ block: "nearest" });
    approach(id);
  } catch (error) {
    say(error.message, true);
  }
}

// What the score of a document is made of, a bar for each block of the vector.
async function explain(id, box) {
  const answer = await ask("api/explain", [["q", state.query], ["id", id]]).catch(() => null);  // not every model has blocks
  if (!answer || answer.blocks.length < 2) return;
  const longest = Math.max(...answer.blocks.map((block) => Math.abs(block.score)));
  const rows = answer.blocks.map((block) => {
    const row = make("div", "reason");
    const track = make("span", "track");
    const bar = make("i", block.score < 0 ? "against" : "");
    bar.style.setProperty("width", `${Math.abs(block.score) / longest * 100}%`);
    track.append(bar);
    row.append(make("span", "", block.name), track, make("span", "score", block.score.toFixed(2)));
    return row;
  });
  box.replaceChildren(make("p", "source", `What its score ${answer.score.toFixed(2)} is made of`), ...rows);
}

function closeDocument() {
  find("document").hidden = true;
  state.open = null;
  draw();
}

// --- the map -----------------------------------------------------------------------------------------------------------
const canvas = find("canvas");

async function loadMap() {
  try {
    const answer = await ask("api/map");
    find("map-status").textContent = { computing: "The map is being made…", failed: `There is no map. ${answer.error || ""}`, none: "There is no map." }[answer.state] || "";
    find("map-status").classList.toggle("wrong", answer.state === "failed");
    if (answer.state === "computing") setTimeout(loadMap, 1500);
    if (answer.state !== "ready") return;
    state.map = answer;
    answer.ids.forEach((id, index) => state.byId.set(id, index));
    find("color").replaceChildren(...Object.keys(answer.colors).map((name) => make("option", "", name)));
    if (state.hits.length) search(find("query").value, true);  // now hits have places
    legend();
    draw();
  } catch (error) {
    find("map-status").textContent = error.message;
    find("map-status").classList.add("wrong");
  }
}

function coloring() {
  return state.map ? state.map.colors[find("color").value] : null;
}

function legend() {
  const chosen = coloring();
  if (!chosen) return;
  const palette = dark.matches ? DARK : LIGHT;
  find("legend").replaceChildren(...chosen.names.map((name, number) => {
    const item = make("li");
    const button = make("button");
    const dot = make("i");
    dot.style.setProperty("background", palette[number % palette.length]);
    button.type = "button";
    button.setAttribute("aria-pressed", String(state.only === number));
    button.append(dot, name || "(none)");
    button.addEventListener("click", () => { state.only = state.only === number ? null : number; legend(); draw(); });
    item.append(button);
    return item;
  }));
}

const MARGIN = 26;

// From the map's coordinates, -1 to 1, to pixels of the canvas.
function place(x, y) {
  const { width, height } = canvas.getBoundingClientRect();
  const { view } = state;
  return [
    width / 2 + (x - view.x) * view.zoom * (width / 2 - MARGIN),
    height / 2 - (y - view.y) * view.zoom * (height / 2 - MARGIN),
  ];
}

// Shows the part of the map around a point that is `zoom` times smaller than the whole; never beyond its edges.
function look(x, y, zoom) {
  zoom = Math.min(60, Math.max(1, zoom));
  const most = 1 - 1 / zoom;
  state.view = { x: Math.min(most, Math.max(-most, x)), y: Math.min(most, Math.max(-most, y)), zoom };
  find("whole").hidden = zoom === 1;
  draw();
}

function lookAtHits() {
  const points = state.hits.map((hit) => hit.point).filter(Boolean);
  const middle = (values) => (Math.min(...values) + Math.max(...values)) / 2;
  const [xs, ys] = [points.map((point) => point[0]), points.map((point) => point[1])];
  const [x, y] = [middle(xs), middle(ys)];
  const reach = Math.max(...points.map((point) => Math.max(Math.abs(point[0] - x), Math.abs(point[1] - y))), 0.02);
  look(x, y, 0.8 / reach);
}

function draw() {
  const size = canvas.getBoundingClientRect();
  const scale = devicePixelRatio || 1;
  canvas.width = Math.round(size.width * scale);
  canvas.height = Math.round(size.height * scale);
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const chosen = coloring();
  if (!chosen) return;
  const palette = dark.matches ? DARK : LIGHT;
  const style = getComputedStyle(document.documentElement);
  const count = state.map.ids.length;
  const radius = (count > 2000 ? 2 : count > 400 ? 2.8 : 4.5) * Math.min(2, state.view.zoom ** 0.4);
  const dim = state.hits.length > 0;
  for (let index = 0; index < count; index++) {
    const value = chosen.values[index];
    pen.globalAlpha = state.only !== null && state.only !== value ? 0.07 : dim ? 0.3 : 0.8;
    pen.fillStyle = palette[value % palette.length];
    pen.beginPath();
    pen.arc(...place(state.map.x[index], state.map.y[index]), radius, 0, 2 * Math.PI);
    pen.fill();
  }
  pen.globalAlpha = 1;
  for (let rank = state.hits.length - 1; rank >= 0; rank--) {  // the best one last, on top
    const hit = state.hits[rank];
    if (!hit.point) continue;
    const [x, y] = place(...hit.point);
    disc(pen, x, y, rank < 9 ? 9 : 6, style.getPropertyValue("--accent"), style.getPropertyValue("--halo"));
    pen.fillStyle = style.getPropertyValue("--on-accent");
    pen.font = "600 11px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    if (rank < 9) pen.fillText(String(rank + 1), x, y + 0.5);
  }
  for (const id of new Set([state.open, state.near])) {
    const at = whereIs(id);
    if (!at) continue;
    pen.strokeStyle = style.getPropertyValue("--ink");
    pen.lineWidth = 2.5;
    pen.beginPath();
    pen.arc(...place(...at), 13, 0, 2 * Math.PI);
    pen.stroke();
  }
}

function disc(pen, x, y, radius, fill, halo) {
  pen.beginPath();
  pen.arc(x, y, radius + 2, 0, 2 * Math.PI);
  pen.fillStyle = halo;
  pen.fill();
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fillStyle = fill;
  pen.fill();
}

function whereIs(id) {
  const hit = state.hits.find((one) => one.id === id);
  if (hit && hit.point) return hit.point;
  const index = state.byId.get(id);
  return index === undefined ? null : [state.map.x[index], state.map.y[index]];
}

function titleOf(id) {
  const hit = state.hits.find((one) => one.id === id);
  return hit ? hit.title || hit.id : state.map.titles[state.byId.get(id)];
}

// Rings a document's point and its card; null lets go of both.
function approach(id) {
  state.near = id;
  for (const item of find("hits").children) item.classList.toggle("near", item.dataset.id === id);
  const point = state.map && id !== null ? whereIs(id) : null;
  const tip = find("tip");
  tip.hidden = !point;
  if (point) {
    tip.textContent = titleOf(id);
    const [x, y] = place(...point);
    const size = canvas.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x - tip.offsetWidth / 2, size.width - tip.offsetWidth - 4))}px`;
    tip.style.top = `${y > size.height / 2 ? y - tip.offsetHeight - 18 : y + 18}px`;
  }
  draw();
}

function nearest(event) {
  const size = canvas.getBoundingClientRect();
  const at = [event.clientX - size.left, event.clientY - size.top];
  let best = null;
  let least = 18;  // pixels
  const consider = (id, x, y) => {
    const [left, top] = place(x, y);
    const distance = Math.hypot(left - at[0], top - at[1]);
    if (distance < least) { least = distance; best = id; }
  };
  if (state.map) {
    const chosen = coloring();
    state.map.ids.forEach((id, index) => {
      if (state.only === null || chosen.values[index] === state.only) consider(id, state.map.x[index], state.map.y[index]);
    });
    for (const hit of state.hits) if (hit.point) consider(hit.id, ...hit.point);
  }
  return best;
}

const STEPS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

// The next point in a direction: far is worse, aside is twice as bad as ahead.
function stepTo([right, up]) {
  const from = whereIs(state.near) || [0, 0];
  let best = null;
  let least = Infinity;
  state.map.ids.forEach((id, index) => {
    const [dx, dy] = [state.map.x[index] - from[0], state.map.y[index] - from[1]];
    const ahead = dx * right + dy * up;
    const aside = Math.abs(dx * up - dy * right);
    if (id !== state.near && ahead > 1e-4 && ahead + 2 * aside < least) { least = ahead + 2 * aside; best = id; }
  });
  return best;
}

canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  const { width, height, left, top } = canvas.getBoundingClientRect();
  const { view } = state;
  const zoom = Math.min(60, Math.max(1, view.zoom * 1.0015 ** -event.deltaY));
  const shift = 1 / view.zoom - 1 / zoom;  // keeps the point under the pointer where it is
  const right = (event.clientX - left - width / 2) / (width / 2 - MARGIN);
  const up = -(event.clientY - top - height / 2) / (height / 2 - MARGIN);
  look(view.x + right * shift, view.y + up * shift, zoom);
}, { passive: false });
find("to-hits").addEventListener("click", lookAtHits);
find("whole").addEventListener("click", () => look(0, 0, 1));
canvas.addEventListener("pointermove", (event) => { const id = nearest(event); if (id !== state.near) approach(id); });
canvas.addEventListener("pointerleave", () => approach(null));
canvas.addEventListener("blur", () => approach(null));
canvas.addEventListener("click", (event) => { const id = nearest(event); if (id !== null) openDocument(id); });
canvas.addEventListener("keydown", (event) => {
  if (!state.map) return;
  const factor = { "+": 1.5, "=": 1.5, "-": 1 / 1.5, 0: 0 }[event.key];
  if (factor !== undefined) look(...(whereIs(state.near) || [state.view.x, state.view.y]), state.view.zoom * factor);
  if (event.key === "Enter" && state.near !== null) openDocument(state.near);
  if (!STEPS[event.key]) return;
  event.preventDefault();
  const id = stepTo(STEPS[event.key]);
  if (id === null) return;
  const point = whereIs(id);
  const reach = 1 / state.view.zoom;
  if (Math.abs(point[0] - state.view.x) > reach || Math.abs(point[1] - state.view.y) > reach) look(...point, state.view.zoom);
  approach(id);
  find("spoken").textContent = titleOf(id);
});

// --- the page ----------------------------------------------------------------------------------------------------------
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches?.("input:not([type=checkbox])");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) { event.preventDefault(); find("query").focus(); find("query").select(); }
  if (event.key === "Escape") closeDocument();
});
// The box lets go of the keys, so that a phone's keyboard does not cover the hits and "/" leads back to it.
find("form").addEventListener("submit", (event) => { event.preventDefault(); find("query").blur(); search(find("query").value); });
find("key").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", find("secret").value);
  find("key").hidden = true;
  begin();
});
find("color").addEventListener("change", () => { state.only = null; legend(); draw(); });
dark.addEventListener("change", () => { legend(); draw(); });
addEventListener("popstate", () => search(new URLSearchParams(location.search).get("q") || "", true));
new ResizeObserver(draw).observe(find("plane"));

function begin() {
  ask("api/info").then((info) => {
    find("about").textContent = `${info.corpus} · ${info.documents.toLocaleString("en")} documents · model ${info.model}`;
    search(new URLSearchParams(location.search).get("q") || "", true);
    loadMap();
  }).catch((error) => say(error.message, true));
}
begin();
