"use strict";
(() => {
const D = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const K = D.classes.length;
const VERDICT = { c: "critical", n: "neutral", d: "detrimental", "-": "not tested" };
const el = (tag, props = {}, ...children) => {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(props)) k in e ? (e[k] = v) : e.setAttribute(k, v);
  e.append(...children.filter((c) => c !== null && c !== undefined));
  return e;
};
const NS = "http://www.w3.org/2000/svg";
const svg = (tag, attributes, text) => {
  const e = document.createElementNS(NS, tag);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  if (text !== undefined) e.textContent = text;
  return e;
};
const minus = (s) => s.replace("-", "−");
const signed = (v, digits = 4) => (v === null || Number.isNaN(v) ? "–" : minus((v >= 0 ? "+" : "") + v.toFixed(digits)));
const percent = (v, digits = 1) => (v === null || v === undefined ? "–" : `${(100 * v).toFixed(digits)} %`);
const pvalue = (p) => (Number.isNaN(p) || p === null ? "–" : p === 0 ? "0" : p < 1e-36 ? "< 1e−36" : minus(p < 0.001 ? p.toExponential(0) : p.toFixed(3)));
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

// ---- effects: packed floats, or the classes that tell most
const floats = (text) => {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new Float32Array(bytes.buffer);
};
for (const g of D.groups) if (g.effects) [g.mean, g.p] = g.effects.map(floats);
const effectsOf = (g, u) => {
  if (g.telling) return g.telling[u].map(([k, mean, p, pi]) => ({ k, mean, p, pi }));
  const found = [];
  for (let k = 0; k < K; k++) {
    const s = g.signs[u * K + k];
    if (s !== ".") found.push({ k, mean: g.mean[u * K + k], p: g.p[u * K + k], pi: s === "-" ? -1 : s === "+" ? 1 : 0 });
  }
  return found;
};
const effectOn = (g, u, k) => (g.telling ? (g.telling[u].find((e) => e[0] === k) || [0, NaN])[1] : g.mean[u * K + k]);

// ---- theme
const root = document.documentElement, themes = ["auto", "light", "dark"];
let theme = 0;
const dress = () => {
  theme ? root.setAttribute("data-theme", themes[theme]) : root.removeAttribute("data-theme");
  $("theme").textContent = `Theme: ${themes[theme]}`;
  paint(); plot();
};
$("theme").addEventListener("click", () => { theme = (theme + 1) % 3; dress(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { paint(); plot(); });

// ---- tables: rows are arrays of cells {v, t, node, n}; a heading sorts by v
const compared = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a ?? "").localeCompare(String(b ?? ""), undefined, { numeric: true }));
const headings = (tr, names, onsort) => {
  const heads = names.map((h, i) => {
    const button = el("button", { type: "button", textContent: h.t });
    const th = el("th", { className: h.n ? "n" : "", scope: "col" }, button);
    button.addEventListener("click", () => {
      const down = th.getAttribute("aria-sort") === (h.n ? "descending" : "ascending") ? !!h.n === false : !!h.n;
      heads.forEach((o) => o.removeAttribute("aria-sort"));
      th.setAttribute("aria-sort", down ? "descending" : "ascending");
      onsort(i, down ? -1 : 1);
    });
    return th;
  });
  tr.replaceChildren(...heads);
};
const cell = (c) => el("td", { className: c.n ? "n" : "" }, c.node || String(c.t ?? c.v ?? ""));
function table(target, columns, rows, { page = 0, pager = null, mark = null } = {}) {
  const body = el("tbody"), tr = el("tr");
  target.replaceChildren(el("thead", {}, tr), body);
  let shown = rows, at = 0;
  const draw = () => {
    const some = page ? shown.slice(at * page, (at + 1) * page) : shown;
    body.replaceChildren(...some.map((r) => { const row = el("tr", {}, ...r.cells().map(cell)); if (mark) row.className = mark(r); return row; }));
    if (pager) {
      const last = Math.max(0, Math.ceil(shown.length / page) - 1);
      const go = (text, to, off) => { const b = el("button", { type: "button", textContent: text, disabled: off }); b.addEventListener("click", () => { at = to; draw(); }); return b; };
      pager.replaceChildren(go("‹ earlier", at - 1, at === 0), ` ${at * page + (shown.length ? 1 : 0)}–${Math.min(shown.length, (at + 1) * page)} of ${shown.length.toLocaleString("en")} `, go("later ›", at + 1, at >= last));
    }
  };
  headings(tr, columns, (i, way) => { shown = [...shown].sort((a, b) => way * compared(a.key(i), b.key(i))); at = 0; draw(); });
  draw();
  return { show: (some) => { shown = some; at = 0; draw(); }, redraw: draw };
}
for (const t of document.querySelectorAll("table.sortable")) {
  const rows = [...t.tBodies[0].rows], tr = t.tHead.rows[0];
  const names = [...tr.cells].map((c) => ({ t: c.textContent, n: c.classList.contains("n") }));
  const key = (row, i) => { const c = row.cells[i], v = c.dataset.v ?? parseFloat(c.textContent.replace("−", "-").replace(/,/g, "")); return names[i].n && !Number.isNaN(+v) ? +v : c.textContent; };
  headings(tr, names, (i, way) => t.tBodies[0].append(...rows.sort((a, b) => way * compared(key(a, i), key(b, i)))));
}

// ---- the curve
let kind = "params";
const WHAT = { params: "parameters", macs: "MACs", units: "units" };
function plot() {
  const c = D.curve[kind], host = $("plot");
  const wide = host.clientWidth || 800, W = wide, H = wide < 500 ? 260 : 340, L = 52, R = 16, T = 14, B = 44;
  const all = [...c.calibration, ...c.held_out, ...(c.chosen ? [c.chosen] : [])];
  if (!all.length) { host.replaceChildren(el("p", { className: "muted", textContent: "No quality was measured: the artifact was saved without it." })); return; }
  const top = Math.max(...all.map((p) => p[1])), low = Math.min(...all.map((p) => p[1]));
  const y1 = Math.min(1, top + 0.04), y0 = Math.max(0, Math.min(low - 0.04, y1 - 0.1)), x1 = Math.max(0.05, ...all.map((p) => p[0])) * 1.03;
  const X = (v) => L + (v / x1) * (W - L - R), Y = (v) => T + ((y1 - v) / (y1 - y0)) * (H - T - B);
  const s = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${D.headline || "quality"} against ${WHAT[kind]} removed` });
  const steps = (a, b, n) => { const raw = (b - a) / n, m = 10 ** Math.floor(Math.log10(raw)), f = [1, 2, 5, 10].find((q) => q * m >= raw) * m; const out = []; for (let v = Math.ceil(a / f) * f; v <= b + 1e-9; v += f) out.push(v); return out; };
  const digits = y1 - y0 < 0.06 ? 1 : 0;
  for (const v of steps(y0, y1, 5)) { s.append(svg("line", { x1: L, x2: W - R, y1: Y(v), y2: Y(v), stroke: css("line") }), svg("text", { x: L - 8, y: Y(v) + 4, "text-anchor": "end" }, percent(v, digits))); }
  for (const v of steps(0, x1, wide < 500 ? 4 : 8)) s.append(svg("text", { x: X(v), y: H - B + 20, "text-anchor": "middle" }, percent(v, x1 < 0.06 ? 1 : 0)));
  s.append(svg("text", { x: (L + W - R) / 2, y: H - 6, "text-anchor": "middle" }, `${WHAT[kind]} removed`));
  const line = (points, colour, dash) => points.length > 1 && s.append(svg("polyline", { points: points.map((p) => `${X(p[0]).toFixed(1)},${Y(p[1]).toFixed(1)}`).join(" "), fill: "none", stroke: colour, "stroke-width": 2, "stroke-dasharray": dash, "stroke-linejoin": "round" }));
  line(c.calibration, css("neutral"), "5 4"); line(c.held_out, css("accent"), "none");
  const tip = el("div", { className: "tip", hidden: true });
  const dot = (p, label, attributes) => {
    const m = svg("circle", { cx: X(p[0]), cy: Y(p[1]), tabindex: 0, "aria-label": label, ...attributes });
    const on = () => { tip.textContent = label; tip.hidden = false; tip.style.top = `${(Y(p[1]) / H) * host.clientHeight - 34}px`; tip.style.left = `${Math.max(0, Math.min(X(p[0]) - tip.offsetWidth / 2, wide - tip.offsetWidth))}px`; };
    for (const n of ["mouseenter", "focus"]) m.addEventListener(n, on);
    for (const n of ["mouseleave", "blur"]) m.addEventListener(n, () => { tip.hidden = true; });
    s.append(m);
  };
  for (const p of c.held_out) dot(p, `held out: ${percent(p[1], 2)} at ${percent(p[0])} of ${WHAT[kind]} removed`, { r: 4.5, fill: css("accent"), stroke: css("card"), "stroke-width": 1.5 });
  if (c.chosen) dot(c.chosen, `this network: ${percent(c.chosen[1], 2)} at ${percent(c.chosen[0])} of ${WHAT[kind]} removed`, { r: 9, fill: "transparent", stroke: css("detrimental"), "stroke-width": 3 });
  host.replaceChildren(s, tip);
  $("plotnote").textContent = [c.held_out.length ? `Solid, with dots: ${D.headline} on held-out data.` : "", c.calibration.length > 1 ? "Dashed: the same on the calibration set, while the path was built." : "", c.chosen ? "Ring: this network." : ""].filter(Boolean).join(" ");
}
$("kinds").addEventListener("click", (e) => {
  const b = e.target.closest("button"); if (!b) return;
  kind = b.dataset.kind;
  for (const o of $("kinds").children) o.setAttribute("aria-pressed", String(o === b));
  plot();
});

// ---- the map
const CELL = 13, GAP = 2, rows = [];
let mode = "verdict", picked = null;
const rgb = (name) => { const h = css(name); return [1, 3, 5].map((i) => parseInt(h.slice(i, i + 2), 16)); };
const blend = (a, b, t) => `rgb(${a.map((v, i) => Math.round(v * t + b[i] * (1 - t))).join(",")})`;
const value = (g, u) => (mode === "xi" ? g.xi[u] : mode === "needs" ? -g.needs[u] : effectOn(g, u, +mode));
let scale = 1;
const rescale = () => {
  if (mode === "verdict") return;
  const all = D.groups.flatMap((g) => g.verdict.map((_, u) => Math.abs(value(g, u))).filter((v) => v > 0)).sort((a, b) => a - b);
  scale = all.length ? all[Math.floor(0.95 * (all.length - 1))] || 1 : 1;
};
function drawRow(r) {
  const { g, canvas } = r, w = canvas.parentNode.clientWidth, per = Math.max(1, Math.floor((w + GAP) / (CELL + GAP))), lines = Math.ceil(g.size / per), h = lines * (CELL + GAP) - GAP, dpr = window.devicePixelRatio || 1;
  r.per = per;
  canvas.width = w * dpr; canvas.height = h * dpr; canvas.style.height = h + "px";
  const x = canvas.getContext("2d");
  x.scale(dpr, dpr);
  const solid = { c: css("critical"), n: css("neutral"), d: css("detrimental"), "-": css("untested") };
  const blue = rgb("critical"), orange = rgb("detrimental"), none = rgb("untested");
  for (let u = 0; u < g.size; u++) {
    const left = (u % per) * (CELL + GAP), top = Math.floor(u / per) * (CELL + GAP);
    let colour = solid[g.verdict[u]];
    if (mode !== "verdict") { const v = value(g, u), t = Number.isFinite(v) && v !== null ? Math.min(1, Math.abs(v) / scale) : 0; colour = blend(v < 0 ? blue : orange, none, Math.sqrt(t)); }
    if (g.gone[u]) {
      x.strokeStyle = g.verdict[u] === "-" && mode === "verdict" ? css("muted") : colour; x.lineWidth = 1.6;
      x.strokeRect(left + 1.3, top + 1.3, CELL - 2.6, CELL - 2.6);
      x.beginPath(); x.moveTo(left + 3.5, top + CELL - 3.5); x.lineTo(left + CELL - 3.5, top + 3.5); x.stroke();
    } else { x.fillStyle = colour; x.fillRect(left, top, CELL, CELL); }
    if (picked && picked.g === g && picked.u === u) { x.strokeStyle = css("ink"); x.lineWidth = 2.5; x.strokeRect(left + 0.5, top + 0.5, CELL - 1, CELL - 1); }
  }
}
function paint() { rescale(); rows.forEach(drawRow); legend(); }
function legend() {
  const box = $("legend");
  if (mode === "verdict") {
    const tested = D.groups.some((g) => g.verdict.some((v) => v !== "-"));
    const items = tested ? ["c", "n", "d"].map((v) => [VERDICT[v], css(VERDICT[v]), false]) : [];
    if (D.groups.some((g) => g.verdict.includes("-"))) items.push(["not tested", css("untested"), false]);
    items.push(["hollow: removed", css("muted"), true]);
    box.replaceChildren(...items.map(([t, c, hollow]) => { const i = el("i"); i.style.background = hollow ? "none" : c; i.style.borderColor = c; return el("span", {}, i, t); }));
    return;
  }
  const ramp = el("b"); ramp.style.background = `linear-gradient(90deg, ${css("critical")}, ${css("untested")}, ${css("detrimental")})`;
  const ends = mode === "needs" ? ["many classes need it", "none"] : ["worse without it", "better without it"];
  if (mode === "needs") ramp.style.background = `linear-gradient(90deg, ${css("critical")}, ${css("untested")})`;
  box.replaceChildren(el("span", {}, ends[0], ramp, ends[1]), el("span", {}, "hollow: removed"));
}
const choose = (g, u, open = true) => {
  const before = picked;
  picked = { g, u };
  for (const r of rows) if (r.g === g || (before && r.g === before.g)) drawRow(r);
  detail(g, u, open);
};
function detail(g, u, open) {
  const box = $("unit"), effects = effectsOf(g, u), biggest = Math.max(1e-12, ...effects.map((e) => Math.abs(e.mean) || 0));
  const v = g.verdict[u], end = g.end[u];
  const fate = g.gone[u] ? `removed${end ? `, step ${end.toLocaleString("en")}` : ""}` : end ? (end > D.steps ? `kept here; the path removes it later, at step ${end.toLocaleString("en")}` : "kept, for the width of its layer") : "kept";
  const reason = (D.walk[(g.gone[u] ? end || g.test[u] : g.test[u] || end) - 1] || [])[8] || "not reached by the path";
  const close = el("button", { type: "button", className: "close", textContent: "close" });
  close.addEventListener("click", () => box.classList.remove("open"));
  const names = (some) => (some.length ? some.map((e) => D.classes[e.k]).join(", ") : "none");
  const list = el("dl", {},
    el("dt", { textContent: "fate" }), el("dd", { textContent: fate }), el("dt", { textContent: "why" }), el("dd", { textContent: reason }),
    ...(g.xi[u] === null ? [] : [el("dt", { textContent: "ξ" }), el("dd", { textContent: signed(g.xi[u], 5) })]),
    ...(effects.length ? [el("dt", { textContent: "needed by" }), el("dd", { textContent: g.telling ? `${g.needs[u]} classes` : names(effects.filter((e) => e.pi < 0)) }), el("dt", { textContent: "hurts" }), el("dd", { textContent: g.telling ? `${g.hurts[u]} classes` : names(effects.filter((e) => e.pi > 0)) })] : []),
    ...(g.edge[u] ? [el("dt", { textContent: "note" }), el("dd", { textContent: "on a knife’s edge: |p − α| < 1e−4" })] : []));
  const bars = effects.map((e) => {
    const i = el("i"), size = (50 * Math.abs(e.mean)) / biggest;
    i.style.width = `${size}%`; i.style.left = e.mean < 0 ? `${50 - size}%` : "50%";
    return el("div", { className: `effect ${e.pi < 0 ? "need" : e.pi > 0 ? "hurt" : ""}`, title: `${D.classes[e.k]}: mean difference ${signed(e.mean, 6)}, p = ${pvalue(e.p)}` },
      el("span", { textContent: D.classes[e.k] }), el("span", { className: "track" }, i), el("span", { textContent: pvalue(e.p) }));
  });
  box.replaceChildren(close, el("h3", { textContent: `${g.name} · ${u}` }), el("span", { className: `tag ${v === "-" ? "x" : v}`, textContent: VERDICT[v] }), list,
    ...(bars.length ? [el("p", { className: "muted", textContent: "Mean change of the score when it is cut, by class (left: worse), and p:" })] : []), ...bars, ...thumbs(g, u));
  if (open) box.classList.add("open");
}
function thumbs(g, u) {
  const all = D.images && D.images.units[g.name];
  if (!all || !all[u].length) return [];
  const { tile, columns, url, rows: count } = D.images, shown = 56;
  return [el("p", { className: "muted", textContent: "Calibration images that activate it most:" }), el("div", { className: "thumbs" }, ...all[u].map(([index, label, activation]) => {
    const i = el("i", { role: "img", "aria-label": D.classes[label] });
    i.style.background = `url(${url}) -${(index % columns) * shown}px -${Math.floor(index / columns) * shown}px / ${columns * shown}px ${count * shown}px`;
    if (tile < shown) i.style.imageRendering = "pixelated";
    return el("div", { title: `${D.classes[label]}, ${activation}` }, i, D.classes[label]);
  }))];
}
function unitAt(r, e) {
  const box = r.canvas.getBoundingClientRect(), c = Math.floor((e.clientX - box.left) / (CELL + GAP)), l = Math.floor((e.clientY - box.top) / (CELL + GAP)), u = l * r.per + c;
  return c < r.per && u < r.g.size && u >= 0 ? u : -1;
}
let pinned = false;
for (const g of D.groups) {
  const c = g.counts, canvas = el("canvas", { tabIndex: 0, "aria-label": `${g.name}: ${g.size} units, ${c.critical} critical, ${c.neutral} neutral, ${c.detrimental} detrimental, ${c.removed} removed; arrow keys move among units` });
  canvas.setAttribute("role", "application");
  const r = { g, canvas, per: 1 };
  canvas.addEventListener("mousemove", (e) => { const u = unitAt(r, e); if (u >= 0 && !pinned && !(picked && picked.g === g && picked.u === u)) choose(g, u, false); });
  canvas.addEventListener("click", (e) => { const u = unitAt(r, e); if (u >= 0) { pinned = !(pinned && picked && picked.g === g && picked.u === u); choose(g, u); } });
  canvas.addEventListener("focus", () => { if (canvas.matches(":focus-visible")) choose(g, picked && picked.g === g ? picked.u : 0); });
  canvas.addEventListener("keydown", (e) => {
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: r.per, ArrowUp: -r.per, Home: -g.size, End: g.size }[e.key];
    if (e.key === "Escape") $("unit").classList.remove("open");
    if (by === undefined) return;
    e.preventDefault();
    choose(g, Math.max(0, Math.min(g.size - 1, (picked && picked.g === g ? picked.u : 0) + by)));
  });
  rows.push(r);
  $("rows").append(el("div", { className: "row" }, el("header", {}, el("code", { textContent: g.name }), el("span", { textContent: `${g.size} units, ${c.removed} removed` })), canvas));
}
for (const [k, name] of D.classes.entries()) if (K <= 200) $("colour").append(el("option", { value: String(k), textContent: `effect on ${name}` }));
$("colour").addEventListener("change", () => { mode = $("colour").value; paint(); });
const link = (text, act) => { const b = el("button", { type: "button", className: "link", textContent: text }); b.addEventListener("click", act); return b; };
const jump = (name, u) => { const r = rows.find((o) => o.g.name === name); if (!r) return; pinned = true; choose(r.g, u); r.canvas.scrollIntoView({ block: "center" }); };

// ---- classes
const drop = (c) => (c.before === null || c.after === null ? null : c.after - c.before);
const classRows = D.by_class.map((c) => ({ c, key: (i) => [c.name, c.before, c.after, drop(c), c.needs, c.alone, c.hurts][i], cells: () => [
  { node: link(c.name, () => units(c)) }, { n: 1, t: percent(c.before) }, { n: 1, t: percent(c.after) }, { n: 1, t: drop(c) === null ? "–" : `${signed(100 * drop(c), 1)} pts` },
  { n: 1, t: c.needs.toLocaleString("en") }, { n: 1, t: c.alone.toLocaleString("en") }, { n: 1, t: c.hurts.toLocaleString("en") }] }));
let shownClass = null;
const classTable = table($("classtable"), [{ t: "class" }, { t: "before", n: 1 }, { t: "after", n: 1 }, { t: "difference", n: 1 }, { t: "units it needs", n: 1 }, { t: "alone", n: 1 }, { t: "hurt it", n: 1 }], classRows, { mark: (r) => (r.c === shownClass ? "on" : "") });
function units(c) {
  shownClass = c; classTable.redraw();
  const some = (title, list, total) => [el("h3", { textContent: `${title} (${total.toLocaleString("en")}${total > list.length ? `, the first ${list.length}` : ""})` }),
    list.length ? el("ul", { className: "units" }, ...list.map(([g, u, m]) => el("li", {}, link(`${g} · ${u}`, () => jump(g, u)), ` ${Math.abs(m) < 5e-4 ? minus(m.toExponential(1)).replace("e-", "e−") : signed(m, 4)}`))) : el("p", { className: "muted", textContent: "none" })];
  $("classunits").replaceChildren(...some(`Units that ${c.name} alone needs`, c.alone_units, c.alone), ...some(`Units that hurt ${c.name}`, c.hurting_units, c.hurts));
  const k = D.by_class.indexOf(c);
  if (K <= 200) { $("colour").value = mode = String(k); paint(); }
}

// ---- the walk
const last = {};
D.walk.forEach((d) => { last[d[2]] = d[0]; });
const groupRows = [...D.groups].reverse().map((g) => ({ g, key: (i) => [g.name, g.size, g.counts.tested, g.counts.critical, g.counts.neutral, g.counts.detrimental, g.counts.removed, g.counts.removed / g.size][i], cells: () => [
  { node: link(g.name, () => jump(g.name, 0)) }, ...[g.size, g.counts.tested, g.counts.critical, g.counts.neutral, g.counts.detrimental, g.counts.removed].map((t) => ({ t: t.toLocaleString("en"), n: 1 })), { n: 1, t: percent(g.counts.removed / g.size, 0) }] }));
table($("grouptable"), [{ t: "group, output to input" }, ...["units", "tested", "critical", "neutral", "detrimental", "removed", "share"].map((t) => ({ t, n: 1 }))], groupRows);
const walkRows = D.walk.map((d) => ({ d, key: (i) => [d[0], d[1], d[2], d[3], d[4], d[5], d[7], d[8], d[9], d[11]][i], cells: () => [
  { n: 1, t: d[0].toLocaleString("en") }, { t: d[1] }, { t: d[2] }, { n: 1, node: link(String(d[3]), () => jump(d[2], d[3])) }, { t: d[4] }, { n: 1, t: signed(d[5], 5) }, { t: d[7] ? "yes" : "no" }, { t: d[8] + (d[0] > D.steps && d[7] ? " (later than this network)" : "") }, { n: 1, t: percent(d[9]) }, { n: 1, t: percent(d[11]) }] }));
const walkTable = table($("walktable"), [{ t: "step", n: 1 }, { t: "phase" }, { t: "group" }, { t: "unit", n: 1 }, { t: "verdict" }, { t: "ξ", n: 1 }, { t: "gone" }, { t: "why" }, { t: "params removed", n: 1 }, { t: "calibration", n: 1 }], walkRows, { page: 25, pager: $("wpages"), mark: (r) => (r.d[0] > D.steps ? "later" : "") });
for (const [id, column] of [["wgroup", 2], ["wphase", 1]]) for (const name of new Set(D.walk.map((d) => d[column]))) $(id).append(el("option", { value: name, textContent: name }));
const filter = () => { const g = $("wgroup").value, p = $("wphase").value, gone = $("wgone").checked; walkTable.show(walkRows.filter(({ d }) => (!g || d[2] === g) && (!p || d[1] === p) && (!gone || d[7]))); };
for (const id of ["wgroup", "wphase", "wgone"]) $(id).addEventListener("change", filter);

let wide = 0;
new ResizeObserver(() => { if (document.body.clientWidth !== wide) { wide = document.body.clientWidth; paint(); plot(); } }).observe(document.body);
root.dataset.ready = String(Math.round(performance.now()));
})();
