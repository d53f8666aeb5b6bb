// The studio's page: sends what is asked for, and shows what the server says of jobs and clips. Nothing that
// a user or the server says becomes HTML.
"use strict";
(() => {
const $ = id => document.getElementById(id);
const make = (kind, parent, name = "", text = "") => {
  const element = parent.appendChild(document.createElement(kind));
  element.className = name;
  element.textContent = text;
  return element;
};
const button = (parent, text, label, action) => {
  const element = make("button", parent, "", text);
  element.type = "button";
  if (label) element.setAttribute("aria-label", label);
  element.onclick = action;
  return element;
};

let models = [], longest = 0, own = null;   // own: guidance that the command line asked for
let clips = [], chosen = null, shown = [];  // chosen: number of the clip to edit; shown: in the player
const mine = new Map();     // jobs of this page that have not ended: number -> where their mistakes are said

/** The server's answer; an Error with its sentence where it refuses. */
async function ask(address, data) {
  const body = data === undefined ? {} : {method: "POST", body: JSON.stringify(data),
                                          headers: {"Content-Type": "application/json"}};
  let reply;
  try {
    reply = await fetch(address, body);
  } catch {
    throw new Error("the studio does not answer; it may have been ended in its terminal");
  }
  const answer = await reply.json().catch(() => ({error: `the studio answered ${reply.status}`}));
  if (!reply.ok) throw new Error(answer.error);
  return answer;
}

function complain(id, sentence = "") {
  const text = sentence.charAt(0).toUpperCase() + sentence.slice(1);
  if ($(id).textContent !== text) $(id).textContent = text;
  $(id).hidden = !text;
}

/** Do what a button asks for; what the server refuses is said at the place ``id``. */
async function attempt(id, action) {
  complain(id);
  try {
    await action();
    await refresh();
  } catch (error) {
    complain(id, error.message);
  }
}

// ---- The form ---------------------------------------------------------------------------------------------

const model = () => models.find(one => one.dataset === $("dataset").value && one.name === $("model").value);

function fill(select, names, wanted) {
  select.replaceChildren();
  for (const name of names) make("option", select, "", name).value = name;
  if (names.includes(wanted)) select.value = wanted;
}

function chooseDataset(wanted) {
  fill($("model"), models.filter(one => one.dataset === $("dataset").value).map(one => one.name), wanted);
  chooseModel();
}

function chooseModel() {
  const one = model();
  $("generate").disabled = !one;
  if (!one) return;
  $("actions").replaceChildren();
  for (const name of one.actions) make("option", $("actions")).value = name;
  const free = one.condition === "uncond";
  for (const input of document.querySelectorAll(".prompt, #edit-prompt")) dress(input);
  [...$("rows").children].forEach((row, i) => { row.hidden = free && i > 0; });
  $("more").hidden = $("edit-label").hidden = free;
  $("guidance").disabled = one.fixed !== null;
  if (one.fixed !== null) $("guidance").value = "";
  $("guidance").placeholder = one.fixed ?? own ?? one.guidance;
  drawBar();
}

function dress(input) {
  const one = model(), by = {text: "what the body does", action: "an action", uncond: "as it likes"};
  if (!one) return;
  input.disabled = one.condition === "uncond";
  input.placeholder = by[one.condition];
  if (one.condition === "action") input.setAttribute("list", "actions");
  else input.removeAttribute("list");
}

function addRow(prompt = "") {
  const row = make("li", $("rows")), number = $("rows").children.length;
  const words = make("input", row, "prompt"), seconds = make("input", row, "seconds");
  words.value = prompt;
  words.setAttribute("aria-label", `Prompt of part ${number}`);
  words.autocomplete = seconds.autocomplete = "off";
  seconds.placeholder = "auto s";
  seconds.inputMode = "decimal";
  seconds.setAttribute("aria-label", `Seconds of part ${number}; empty: estimated`);
  words.oninput = seconds.oninput = drawBar;
  button(row, "\u00d7", `Remove part ${number}`, () => {
    if ($("rows").children.length > 1) row.remove();
    else words.value = seconds.value = "";
    drawBar();
  });
  dress(words);
  drawBar();
  return words;
}

const rows = () => [...$("rows").children].filter(row => !row.hidden).map(row => ({
  prompt: row.querySelector(".prompt").value, seconds: row.querySelector(".seconds").value}));

/** The timeline: parts as wide as they are long; dashed where the length is still to be estimated. */
function drawBar() {
  $("bar").replaceChildren();
  const filled = rows().filter(({prompt, seconds}) => prompt.trim() || seconds.trim());
  for (const {prompt, seconds} of filled) {
    const known = Number(seconds) > 0, part = make("i", $("bar"), known ? "" : "guess", prompt || "\u2026");
    part.style.flexGrow = known ? Math.min(Number(seconds), longest) : 4;
  }
  $("bar").hidden = !filled.length;
  $("meaning").textContent = filled.length > 1
    ? "One motion: its parts follow each other without a seam. Without seconds a length is estimated."
    : "One clip. More parts make one longer motion. Without seconds the length is estimated.";
}

const settings = () => ({dataset: $("dataset").value, model: $("model").value, seed: $("seed").value,
                         guidance: $("guidance").value, clean_feet: $("clean").checked});

$("write").onsubmit = event => {
  event.preventDefault();
  attempt("complaint", async () => {
    const {job} = await ask("generate", {...settings(), rows: rows(), variants: $("variants").value});
    mine.set(job, "complaint");
  });
};
$("more").onclick = () => addRow().focus();
$("dataset").onchange = () => chooseDataset();
$("model").onchange = chooseModel;

// ---- Jobs -------------------------------------------------------------------------------------------------

const open = job => job.state === "waiting" || job.state === "running";

function drawJobs(jobs) {
  for (const job of jobs) {
    if (!mine.has(job.number) || open(job)) continue;
    const place = mine.get(job.number);
    mine.delete(job.number);
    if (job.state === "failed") complain(place, job.error);
    if (job.state !== "done") continue;
    show(job.result, job.result[0]);
    if (innerWidth <= 860) requestAnimationFrame(() => $("stage").scrollIntoView());
  }
  const left = jobs.filter(open);
  const kept = new Map([...$("jobs").children].map(item => [Number(item.dataset.number), item]));
  for (const [number, item] of kept) if (!left.some(job => job.number === number)) item.remove();
  for (const job of left) drawJob(job, kept.get(job.number) ?? newJob(job));
  $("work").hidden = !left.length;
}

function newJob(job) {
  const item = make("li", $("jobs")), line = make("div", item, "line");
  item.dataset.number = job.number;
  make("span", line, "", job.title);
  button(line, "Cancel", `Cancel: ${job.title}`, event => {
    event.target.disabled = true;
    attempt("complaint", () => ask("cancel", {job: job.number}));
  });
  make("progress", item).setAttribute("aria-label", `Progress: ${job.title}`);
  make("div", item, "soft says");
  return item;
}

function drawJob(job, item) {
  const progress = item.querySelector("progress");
  if (job.total) [progress.max, progress.value] = [job.total, job.done];
  else progress.removeAttribute("value");
  progress.hidden = job.state === "waiting";
  const others = job.ahead.length > 1 ? ` and ${job.ahead.length - 1} more` : "";
  const says = job.state === "waiting" ? `waits for: ${job.ahead[0]}${others}`
    : job.stage + (job.total ? `: step ${job.done} of ${job.total}` : "\u2026");
  if (item.querySelector(".says").textContent !== says) item.querySelector(".says").textContent = says;
}

// ---- Clips ------------------------------------------------------------------------------------------------

function show(numbers, choice) {
  shown = numbers;
  chosen = choice;
}

function drawClips() {
  shown = shown.filter(number => clips.some(clip => clip.number === number));
  if (!clips.some(clip => clip.number === chosen)) chosen = shown[0] ?? null;
  const seen = JSON.stringify([clips, chosen]);
  if (drawClips.seen !== seen) {
    const focus = document.activeElement?.closest?.("#clips") ? document.activeElement.dataset.id : null;
    $("clips").replaceChildren();
    [...clips].reverse().forEach(drawClip);
    if (focus) document.querySelector(`#clips [data-id="${focus}"]`)?.focus();
    drawEdit(clips.find(clip => clip.number === chosen));
  }
  drawClips.seen = seen;
  $("clips-box").hidden = !clips.length;
  $("all").hidden = clips.length < 2;
  play();
}

function drawClip(clip) {
  const item = make("li", $("clips"), clip.number === chosen ? "chosen" : "");
  const mark = (element, id) => { element.dataset.id = `${clip.number}-${id}`; return element; };
  const name = mark(button(item, `${clip.number}: ${clip.caption}`, "", () => {
    show([clip.number], clip.number);
    drawClips();
  }), "name");
  name.className = "name";
  name.setAttribute("aria-pressed", clip.number === chosen);
  const about = [`${clip.seconds} s`, `${clip.dataset}/${clip.model}`, `seed ${clip.seed}`];
  if (clip.repeat) about.push(`variant ${clip.repeat + 1}`);
  if (clip.edits) about.push(clip.edits > 1 ? `${clip.edits} edits` : "edited");
  make("div", item, "soft", about.join(" \u00b7 "));
  const files = make("div", item, "files");
  for (const format of clip.formats) mark(button(files, format, `Download clip ${clip.number} as ${format}`,
    event => download(clip, format, event.target)), format);
  make("span", files, "gap");
  if (clip.edits) mark(button(files, "Undo edit", `Undo the last edit of clip ${clip.number}`,
    () => attempt("clip-complaint", () => ask("undo", {clip: clip.number}))), "undo");
  mark(button(files, "Remove", `Remove clip ${clip.number}`,
    () => attempt("clip-complaint", () => ask("remove", {clip: clip.number}))), "remove");
}

async function download(clip, format, pressed) {
  pressed.disabled = true;
  pressed.textContent = `making ${format}\u2026`;
  await attempt("clip-complaint", async () => {
    const {address, name} = await ask("export", {clip: clip.number, format});
    const link = make("a", document.body);
    link.href = address;
    link.download = name;
    link.click();
    link.remove();
  });
  pressed.disabled = false;
  pressed.textContent = format;
}

/** The player shows the current versions of the clips ``shown``; it is loaded anew when these change. */
function play() {
  const visible = shown.map(number => clips.find(clip => clip.number === number));
  const key = visible.map(clip => clip.key).join("-");
  $("player").hidden = !visible.length;
  $("empty").hidden = visible.length > 0;
  if (play.key === key) return;
  play.key = key;
  $("player").contentWindow.location.replace(          // without an entry in the browser's history
    visible.length ? new URL(`view/${shown.join("-")}?${key}`, location.href) : "about:blank");
}

function drawEdit(clip) {
  $("edit").hidden = !clip;
  if (!clip) return;
  $("which").textContent = clip.number;
  if (drawEdit.number !== clip.number) {
    [$("from").value, $("to").value] = [clip.seconds / 4, clip.seconds / 2].map(time => time.toFixed(2));
    complain("edit-complaint");
  }
  drawEdit.number = clip.number;
  $("parts").replaceChildren();
  for (const [start, stop, prompt] of clip.parts) button($("parts"),
    `${start.toFixed(1)}\u2013${stop.toFixed(1)} s: ${prompt}`, "", () => {
      [$("from").value, $("to").value] = [start, stop].map(time => time.toFixed(2));
    });
}

/** The time in the player, in seconds of the first clip that it shows. */
function now() {
  const state = $("player").contentWindow.viewer?.state;
  const fps = Math.max(1, ...clips.filter(clip => shown.includes(clip.number)).map(clip => clip.fps));
  return ((state?.tick ?? 0) / fps).toFixed(2);
}

$("from-now").onclick = () => { $("from").value = now(); };
$("to-now").onclick = () => { $("to").value = now(); };
$("edit").onsubmit = event => {
  event.preventDefault();
  attempt("edit-complaint", async () => {
    const {job} = await ask("edit", {...settings(), clip: chosen, from: $("from").value, to: $("to").value,
                                     prompt: $("edit-prompt").value});
    mine.set(job, "edit-complaint");
  });
};
$("all").onclick = () => {
  show(clips.map(clip => clip.number), chosen);
  drawClips();
};

// ---- The server's state -----------------------------------------------------------------------------------

async function refresh() {
  const state = await ask("state");
  clips = state.clips;
  drawJobs(state.jobs);
  drawClips();
  return state.jobs.some(open);
}

async function watch() {
  let busy = false;
  try {
    busy = await refresh();
    if (watch.lost) complain("complaint");
    watch.lost = false;
  } catch (error) {
    watch.lost = true;
    complain("complaint", error.message);
  }
  setTimeout(watch, busy ? 300 : 2000);
}

async function start() {
  addRow();
  const about = await ask("models");
  ({models, longest, guidance: own} = about);
  $("seed").value = about.seed;
  const first = models[about.wanted];
  fill($("dataset"), [...new Set(models.map(one => one.dataset))], first?.dataset);
  chooseDataset(first?.name);
  const lines = [about.advice, ...about.left_out.map(line => `Left out: ${line}`)].filter(Boolean);
  $("advice").textContent = lines.join("\n");
  $("advice").hidden = !lines.length;
  const state = await ask("state");                     // after a reload the last clip is there again
  const last = state.clips[state.clips.length - 1];
  if (last) show([last.number], last.number);
  for (const job of state.jobs.filter(open)) mine.set(job.number, "complaint");
  watch();
}

start().catch(error => complain("complaint", error.message));
})();
