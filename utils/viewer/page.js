// The viewer: decodes the clips of the page's data, draws them on canvases, and moves all of them through
// time and space together. T frames, P points of the figure, of which the first J are the joints. Y is up.
"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const make = (kind, parent, name = "", text = "") => {
  const element = parent.appendChild(document.createElement(kind));
  element.className = name;
  element.textContent = text;           // never as HTML: prompts are anything
  return element;
};
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

// Time is counted in ticks, frames of the fastest clip; clips that end earlier hold their last frame.
const FPS = Math.max(1, ...data.clips.map(clip => clip.fps));
const TICKS = Math.max(1, ...data.clips.map(clip => Math.ceil(clip.frames * FPS / clip.fps)));
const REST = Math.round(0.3 * FPS);     // ticks of standing still before all start again
const state = {tick: 0, playing: false, speed: 1, yaw: 0, pitch: 0, zoom: 1,        // yaw, pitch: degrees
               path: true, feet: true, follow: true};
const frameAt = clip => Math.min(Math.floor(state.tick / FPS * clip.fps + 1e-6), clip.frames - 1);

// ---- Decoding ---------------------------------------------------------------------------------------------

const bytesOf = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));

/** What is drawn of a clip, decoded when first seen: points (T * P * 3), contacts (T), the root's path. */
function decode(clip) {
  if (clip.decoded) return clip.decoded;
  const raw = new Uint16Array(bytesOf(clip.points).buffer);
  const points = Float32Array.from(raw, (value, i) => clip.low[i % 3] + clip.step * value);
  const stride = data.bodies[clip.body].points * 3;
  const root = Array.from({length: clip.frames}, (_, t) => [points[t * stride], points[t * stride + 2]]);
  clip.decoded = {points, stride, root, contacts: bytesOf(clip.contacts), aims: smooth(root, clip.fps),
                  ...bounds(root)};
  return clip.decoded;
}

/** The root's path (T, 2), averaged over a second: the camera follows it without its sway. */
function smooth(root, fps) {
  const reach = Math.max(1, Math.round(fps / 2));
  return root.map((_, t) => {
    const near = Math.min(reach, t, root.length - 1 - t);       // as many frames before as after
    const sum = [0, 0];
    for (let i = t - near; i <= t + near; i++) root[i].forEach((x, axis) => { sum[axis] += x; });
    return sum.map(x => x / (2 * near + 1));
  });
}

/** Middle and half width of a path (T, 2): what the camera sees when it does not follow. */
function bounds(root) {
  const extreme = (pick, axis) => root.reduce((x, place) => pick(x, place[axis]), root[0][axis]);
  const ends = [0, 1].map(axis => [extreme(Math.min, axis), extreme(Math.max, axis)]);
  return {middle: ends.map(([low, high]) => (low + high) / 2),
          reach: Math.max(...ends.map(([low, high]) => (high - low) / 2))};
}

/** Joints of a clip in metres, [T][J][3], as its file has them but for rounding: for the browser's console */
function joints(number) {
  const clip = data.clips[number], {points, stride} = decode(clip), count = data.bodies[clip.body].joints;
  return Array.from({length: clip.frames}, (_, t) => Array.from({length: count}, (_, j) =>
    [0, 1, 2].map(axis => (points[t * stride + 3 * j + axis] - (axis === 1 ? clip.shift : 0)) / clip.scale)));
}

// ---- The figure -------------------------------------------------------------------------------------------

let colours = {};
function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["sky", "floor", "tile", "past", "ahead", "shadow", "contact", "left", "right",
                      "edited"]) colours[name] = style.getPropertyValue("--" + name).trim();
}
const rgb = (colour, factor, white = 0) =>
  `rgb(${colour.map(x => Math.min(255, Math.round(x * factor + (255 - x * factor) * white))).join(" ")})`;

/** A pin-hole camera for frame t, as in utils/drawing.py; project: (x, y, z) -> [x, y (pixels), distance]. */
function cameraOf(clip, t, width, height) {
  const {aims, middle, reach} = decode(clip), {azimuth, elevation, distance} = data.camera;
  const a = (azimuth + clip.facing + state.yaw) * Math.PI / 180;
  const e = clamp(elevation + state.pitch, 1, 89) * Math.PI / 180;
  const [sa, ca, se, ce] = [Math.sin(a), Math.cos(a), Math.sin(e), Math.cos(e)];
  const away = state.follow ? distance : distance + 2 * reach;
  const side = Math.min(1.3 * width, height);
  const focal = 0.68 * side * away / 1.75 * state.zoom / (state.follow ? 1 : 1 + 0.7 * reach);
  const [mx, mz] = state.follow ? aims[t] : middle;
  const project = (x, y, z) => {
    const [u, v, w] = [x - mx, y - data.camera.height, z - mz];
    const depth = away - u * sa * ce - v * se - w * ca * ce;
    const scale = focal / Math.max(depth, 0.3);
    const [right, down] = [u * ca - w * sa, u * sa * se - v * ce + w * ca * se];
    return [width / 2 + right * scale, height * 0.52 + down * scale, depth];
  };
  const pen = clamp(side / 150, 1, 2.5);                        // width of marks in pixels
  return {project, focal, pen, x: mx, z: mz, range: state.follow ? 4 : 4 + reach};
}

function drawFloor(ctx, camera, tile) {
  const around = Math.min(Math.ceil(camera.range / tile), 24);
  const [i0, j0] = [Math.round(camera.x / tile), Math.round(camera.z / tile)];
  for (let ring = 0; ring < 4; ring++) {                        // the floor fades in four steps
    const paths = [new Path2D(), new Path2D()];
    for (let i = i0 - around; i < i0 + around; i++) for (let j = j0 - around; j < j0 + around; j++) {
      const away = Math.hypot((i + 0.5) * tile - camera.x, (j + 0.5) * tile - camera.z) / camera.range;
      if (Math.floor(away * 4) !== ring) continue;
      const corners = [[i, j], [i + 1, j], [i + 1, j + 1], [i, j + 1]]
        .map(([x, z]) => camera.project(x * tile, 0, z * tile));
      if (corners.some(corner => corner[2] < 0.5)) continue;
      const path = paths[(i + j) & 1];
      corners.forEach(([x, y], n) => n ? path.lineTo(x, y) : path.moveTo(x, y));
      path.closePath();
    }
    ctx.globalAlpha = [1, 0.75, 0.45, 0.18][ring];
    ctx.fillStyle = colours.floor;
    ctx.fill(paths[0]);
    ctx.fillStyle = colours.tile;
    ctx.fill(paths[1]);
  }
  ctx.globalAlpha = 1;
}

function line(ctx, points, colour, width, closed = false) {
  ctx.beginPath();
  let down = false;
  for (const [x, y, depth] of points) {
    if (depth < 0.5) down = false;
    else if (down) ctx.lineTo(x, y);
    else { ctx.moveTo(x, y); down = true; }
  }
  if (closed) ctx.closePath();
  ctx.strokeStyle = colour;
  ctx.lineWidth = width;
  ctx.stroke();
}

/** A tapered capsule around two discs [x, y, radius]: the arcs between their outer tangents. */
function capsule(ctx, [x1, y1, r1], [x2, y2, r2], edge) {
  const turn = Math.acos(clamp((r1 - r2) / Math.max(Math.hypot(x2 - x1, y2 - y1), 1e-6), -1, 1));
  const heading = Math.atan2(y2 - y1, x2 - x1);
  ctx.beginPath();
  ctx.arc(x2, y2, r2 + edge, heading - turn, heading + turn);
  ctx.arc(x1, y1, r1 + edge, heading + turn, heading - turn + 2 * Math.PI);
  ctx.closePath();
}

/** The corners of the convex hull of points [x, y ...]. */
function hullOf(points) {
  const sorted = [...points].sort((p, q) => p[0] - q[0] || p[1] - q[1]);
  const half = list => {
    const out = [];
    for (const p of list) {
      for (let n = out.length; n > 1; n = out.length) {
        const [a, b] = [out[n - 2], out[n - 1]];
        if ((b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0]) > 0) break;
        out.pop();
      }
      out.push(p);
    }
    return out.slice(0, -1);
  };
  return [...half(sorted), ...half(sorted.reverse())];
}

function drawHull(ctx, discs, colour, shade) {
  const corners = hullOf(discs), width = discs.reduce((sum, disc) => sum + disc[2], 0) / discs.length * 1.8;
  ctx.beginPath();
  corners.forEach(([x, y], i) => i ? ctx.lineTo(x, y) : ctx.moveTo(x, y));
  ctx.closePath();
  for (const [tone, wide] of [[rgb(colour, 0.55 * shade), width + 2.4], [rgb(colour, shade), width]]) {
    ctx.strokeStyle = ctx.fillStyle = tone;
    ctx.lineWidth = wide;
    ctx.stroke();
    ctx.fill();
  }
}

function drawFigure(ctx, clip, t, camera, standing) {
  const body = data.bodies[clip.body], {points, stride} = decode(clip);
  const discs = body.radius.map((radius, p) => {
    const at = t * stride + 3 * p;
    const [x, y, depth] = camera.project(points[at], points[at + 1], points[at + 2]);
    return [x, y, radius * camera.focal / Math.max(depth, 0.3), depth];
  });
  const items = body.capsules.map(([a, b, colour]) => ({ends: [discs[a], discs[b]], feet: [a, b], colour}));
  items.push(...body.hulls.map(([some, colour]) => ({ends: some.map(p => discs[p]), hull: true, colour})));
  for (const item of items) item.depth = item.ends.reduce((sum, disc) => sum + disc[3], 0) / item.ends.length;
  const neck = items[body.capsules.length - 1], chest = items[items.length - 1];
  neck.depth = Math.max(neck.depth, chest.depth + 1e-3);        // the neck grows out of the chest
  for (const {ends, feet, hull, colour, depth} of items.sort((p, q) => q.depth - p.depth)) {
    if (ends.some(disc => disc[3] < 0.5)) continue;
    const shade = 1 - 0.3 * clamp((depth - discs[0][3]) / 0.5, -0.2, 1);
    if (hull) { drawHull(ctx, ends, colour, shade); continue; }
    const [first, second] = ends;
    capsule(ctx, first, second, 1.2);
    const stands = feet.every(p => body.feet.includes(p)) && feet.some(p => standing.includes(p));
    ctx.fillStyle = stands ? colours.contact : rgb(colour, 0.55 * shade);
    ctx.fill();
    if (stands) line(ctx, [[first[0], first[1], 1], [second[0], second[1], 1]], colours.contact,
                     2 * first[2] + 2.4 * camera.pen);
    capsule(ctx, first, second, 0);
    ctx.fillStyle = rgb(colour, shade);
    ctx.fill();
    const lift = disc => [disc[0] - 0.3 * disc[2], disc[1] - 0.3 * disc[2], 1];
    line(ctx, [lift(first), lift(second)], rgb(colour, shade, 0.28), 0.42 * (first[2] + second[2]));
  }
}

/** Shadow of the limbs, the root's path and the feet that stand, all on the floor. */
function drawFloorMarks(ctx, clip, t, camera, standing) {
  const body = data.bodies[clip.body], {points, stride, root} = decode(clip);
  if (state.path) {
    const trail = root.map(([x, z]) => camera.project(x, 0, z));
    line(ctx, trail.slice(t), colours.ahead, 0.8 * camera.pen);
    line(ctx, trail.slice(0, t + 1), colours.past, 0.8 * camera.pen);
  }
  const drop = p => {
    const [x, y, z] = points.subarray(t * stride + 3 * p, t * stride + 3 * p + 3);
    return camera.project(x - 0.18 * y, 0, z - 0.12 * y);
  };
  const limbs = body.capsules.flatMap(([a, b]) => [drop(a), drop(b), [0, 0, 0]]);     // depth 0 lifts the pen
  line(ctx, limbs, colours.shadow, 0.11 * camera.focal / data.camera.distance);
  for (const p of standing) {
    const [x, , z] = points.subarray(t * stride + 3 * p, t * stride + 3 * p + 3);
    const ring = Array.from({length: 16}, (_, i) => i * Math.PI / 8)
      .map(angle => camera.project(x + 0.1 * Math.cos(angle), 0, z + 0.1 * Math.sin(angle)));
    line(ctx, ring, colours.contact, camera.pen, true);
  }
}

/** The context of a canvas that has one pixel of its own per pixel of the screen, or up to four. */
function fit(canvas, width, height) {
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const size = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
  const ctx = canvas.getContext("2d");
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  ctx.lineCap = ctx.lineJoin = "round";
  return ctx;
}

function draw(card) {
  const {clip, width, height} = card, t = frameAt(clip);
  if (!width || !height) return;
  const ctx = fit(card.figure, width, height);
  const bits = state.feet ? decode(clip).contacts[t] : 0, body = data.bodies[clip.body];
  const standing = body.feet.filter((_, i) => bits >> i & 1), camera = cameraOf(clip, t, width, height);
  ctx.fillStyle = colours.sky;
  ctx.fillRect(0, 0, width, height);
  drawFloor(ctx, camera, data.tile * clip.scale);
  drawFloorMarks(ctx, clip, t, camera, standing);
  drawFigure(ctx, clip, t, camera, standing);
  card.cursor.style.transform = `translateX(${(t + 0.5) / clip.frames * width}px)`;
  card.now.textContent = `frame ${t} of ${clip.frames} \u00b7 ${(t / clip.fps).toFixed(2)} s`;
  if (clip.codes) card.code.textContent = codeText(clip, t);
}

// ---- Codes and the strip below a figure -------------------------------------------------------------------

const digitsOf = codes => codes.values ??= codes.width === 1 ? bytesOf(codes.digits)
  : new Uint32Array(bytesOf(codes.digits).buffer);

function codeText({codes, frames}, t) {
  const axes = codes.sizes.length, values = digitsOf(codes), count = values.length / axes;
  const at = Math.min(Math.floor(t / codes.frames), count - 1);
  const digits = Array.from(values.subarray(at * axes, (at + 1) * axes)).join(" ");
  const index = codes.indices ? codes.indices[at] : digits;
  return `code ${at}: ${index}${codes.indices && axes > 1 ? ` (${digits})` : ""}`;
}

/** The colour of a digit: a scale where neighbours are alike, otherwise colours as different as they get. */
function colourOf(digit, size, ordered) {
  if (!ordered) return `hsl(${digit * 137.508 % 360} 60% ${40 + digit % 3 * 12}%)`;
  const x = size > 1 ? digit / (size - 1) : 0.5;
  const mixed = [[34, 250], [60, 214], [110, 92]].map(([low, high]) => Math.round(low + x * (high - low)));
  return `rgb(${mixed.join(" ")})`;                             // blue to yellow
}

const BAND = 5, GAP = 3;                // pixels
function drawStrip(card) {
  const {clip, width} = card, {codes} = clip, axes = codes ? codes.sizes.length : 0;
  const row = axes ? clamp(64 / axes, 1, 14) : 0, edited = clip.edited.length ? BAND + GAP : 0;
  const height = Math.ceil(edited + 4 * BAND + GAP + (axes ? GAP + axes * row : 0));
  card.strip.style.height = `${height}px`;
  const ctx = fit(card.strip, width, height), x = frame => frame / clip.frames * width;
  ctx.clearRect(0, 0, width, height);
  const {contacts} = decode(clip);
  for (const [start, stop] of clip.edited) {
    ctx.fillStyle = colours.edited;
    ctx.fillRect(x(start), 0, x(Math.min(stop, clip.frames)) - x(start), BAND);
  }
  for (let foot = 0; foot < 4; foot++) {
    ctx.fillStyle = foot < 2 ? colours.left : colours.right;
    for (let t = 0; t < clip.frames; t++) if (contacts[t] >> foot & 1)
      ctx.fillRect(x(t), edited + foot * BAND + (foot > 1 ? 2 : 0), x(1) + 0.5, BAND - 1);
  }
  const values = axes ? digitsOf(codes) : [], top = edited + 4 * BAND + 2 * GAP;
  for (let i = 0; i < values.length; i++) {
    const start = Math.floor(i / axes) * codes.frames, axis = i % axes;
    if (start >= clip.frames) break;
    ctx.fillStyle = colourOf(values[i], codes.sizes[axis], codes.ordered);
    const wide = x(Math.min(start + codes.frames, clip.frames)) - x(start);
    ctx.fillRect(x(start), top + axis * row, wide - (wide > 6 ? 1 : 0), row > 4 ? row - 1 : row);
  }
}

// ---- Cards ------------------------------------------------------------------------------------------------

const cards = new Map();                // of figures: canvas -> card
const seen = new Set();                 // cards on the screen; the others have no pixels
let dirty = new Set();

function addCard(clip, parent, heading) {
  const box = make("article", parent, "card");
  make("h2", box, "", heading);
  const figure = make("canvas", box, "figure"), track = make("div", box, "track");
  const card = {clip, box, figure, strip: make("canvas", track, "strip"), cursor: make("i", track),
                now: make("p", box, "now"), code: make("p", box, "code")};
  const facts = [clip.file, `${clip.fps} fps`];
  if (clip.skating !== null) facts.push(`foot skating ${clip.skating.toFixed(3)} m/s`);
  make("p", box, "facts", facts.join(" \u00b7 "));
  make("p", box, "facts about", clip.about.join(" \u00b7 "));
  figure.tabIndex = 0;
  figure.setAttribute("role", "img");
  figure.setAttribute("aria-label", `Figure: ${clip.title}${heading === clip.title ? "" : `, ${heading}`}, ` +
    `${clip.frames} frames. Drag to turn, enter to enlarge.`);
  card.strip.setAttribute("role", "img");
  card.strip.setAttribute("aria-label", "Feet on the floor" + (clip.edited.length ? ", new frames" : "") +
    (clip.codes ? ", codes" : "") + " over time");
  cards.set(figure, card);
  turnable(card);
  slidable(card, track);
  watcher.observe(figure);
  sizes.observe(figure);
  return card;
}

function update(card) {                 // at the next repaint
  if (card) dirty.add(card);
  else seen.forEach(other => dirty.add(other));
  if (!update.asked) update.asked = requestAnimationFrame(repaint);
}

function repaint(now) {
  update.asked = 0;
  if (state.playing) {
    const before = state.tick, length = TICKS + REST;
    const passed = Math.min(now - (repaint.last ?? now), 250) / 1000;   // not more after a pause of the tab
    repaint.rest = (repaint.rest ?? 0) + passed * state.speed * FPS;
    const steps = Math.floor(repaint.rest);
    repaint.rest -= steps;
    repaint.place = ((repaint.place ?? before) + steps) % length;
    state.tick = Math.min(repaint.place, TICKS - 1);
    if (state.tick !== before) seen.forEach(card => dirty.add(card));
    update.asked = requestAnimationFrame(repaint);
  }
  repaint.last = now;
  for (const card of dirty) if (seen.has(card)) draw(card);
  dirty = new Set();
  showTime();
}

function showTime() {
  const seconds = (state.tick / FPS).toFixed(2);
  $("time").value = state.tick;
  $("time").setAttribute("aria-valuetext", `${seconds} seconds`);
  $("clock").textContent = `${seconds} / ${((TICKS - 1) / FPS).toFixed(2)} s`;
}

/** Read the sizes of cards, all before anything is written: between writes they cost a new layout each. */
function measure(changed) {
  for (const card of changed) [card.width, card.height] = [card.figure.clientWidth, card.figure.clientHeight];
  for (const card of changed) {
    drawStrip(card);
    update(card);
  }
}

const watcher = new IntersectionObserver(entries => {
  for (const {target, isIntersecting} of entries) {
    if (isIntersecting) seen.add(cards.get(target));
    else if (seen.delete(cards.get(target))) target.width = target.height = 0;
  }
  measure(entries.filter(entry => entry.isIntersecting).map(entry => cards.get(entry.target)));
}, {rootMargin: "200px"});
const sizes = new ResizeObserver(entries =>
  measure(entries.map(entry => cards.get(entry.target)).filter(card => seen.has(card))));

// ---- What the user does -----------------------------------------------------------------------------------

function play(on) {
  state.playing = on;
  repaint.last = repaint.place = undefined;
  if (on && state.tick >= TICKS - 1) state.tick = 0;
  $("play").textContent = on ? "\u275a\u275a" : "\u25b6";
  $("play").setAttribute("aria-label", on ? "Pause" : "Play");
  update();
}

function seek(tick) {
  state.tick = clamp(Math.round(tick), 0, TICKS - 1);
  repaint.place = state.tick;
  update();
}

function turn(yaw, pitch) {
  state.yaw = (state.yaw + yaw) % 360;
  state.pitch = clamp(state.pitch + pitch, 1 - data.camera.elevation, 89 - data.camera.elevation);
  update();
}

function zoom(factor) {
  state.zoom = clamp(state.zoom * factor, 0.3, 8);
  update();
}

function resetView() {
  Object.assign(state, {yaw: 0, pitch: 0, zoom: 1});
  update();
}

function enlarge(card) {
  card.box.classList.toggle("large");
  card.box.scrollIntoView({block: "nearest"});
}

/** One pointer on a figure turns all figures, two zoom; a click without a move enlarges the figure. */
function turnable(card) {
  const {figure} = card, pointers = new Map();
  let moved = 0;
  const spread = () => {
    const [p, q] = [...pointers.values()];
    return Math.hypot(p.x - q.x, p.y - q.y) || 1;
  };
  figure.addEventListener("pointerdown", event => {
    if (event.button) return;
    if (!pointers.size) moved = 0;
    pointers.set(event.pointerId, {x: event.clientX, y: event.clientY});
    figure.setPointerCapture(event.pointerId);
  });
  figure.addEventListener("pointermove", event => {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    const [dx, dy] = [event.clientX - last.x, event.clientY - last.y];
    const before = pointers.size === 2 ? spread() : 0;
    Object.assign(last, {x: event.clientX, y: event.clientY});
    moved += Math.abs(dx) + Math.abs(dy);
    if (before) zoom(spread() / before);
    else if (pointers.size === 1) turn(-dx * 0.6, dy * 0.4);
  });
  figure.addEventListener("pointerup", event => {
    if (pointers.delete(event.pointerId) && !pointers.size && moved < 5) enlarge(card);
  });
  figure.addEventListener("pointercancel", event => pointers.delete(event.pointerId));
  figure.addEventListener("wheel", event => {
    if (!event.ctrlKey && !event.metaKey) return;               // without, the page scrolls
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * 0.002));
  }, {passive: false});
  figure.addEventListener("keydown", event => { if (event.key === "Enter") enlarge(card); });
}

function slidable({clip}, track) {
  const slide = event => {
    const {left, width} = track.getBoundingClientRect();
    const frame = clamp(Math.floor((event.clientX - left) / width * clip.frames), 0, clip.frames - 1);
    seek(Math.ceil(frame * FPS / clip.fps - 1e-6));
  };
  track.addEventListener("pointerdown", event => {
    track.setPointerCapture(event.pointerId);
    play(false);
    slide(event);
  });
  track.addEventListener("pointermove", event => {
    if (track.hasPointerCapture(event.pointerId)) slide(event);
  });
}

const speeds = [...$("speed").options].map(option => Number(option.value));
function setSpeed(speed) {
  state.speed = speed;
  $("speed").value = String(speed);
}

const CODE = data.clips.map(clip => clip.codes && clip.codes.frames * FPS / clip.fps).find(Boolean) || 4;
const changeSpeed = by => setSpeed(speeds[clamp(speeds.indexOf(state.speed) + by, 0, speeds.length - 1)]);
const step = by => { play(false); seek(state.tick + by); };
const KEYS = {
  " ": () => play(!state.playing), ArrowLeft: event => step(event.shiftKey ? -CODE : -1),
  ArrowRight: event => step(event.shiftKey ? CODE : 1), ArrowUp: () => changeSpeed(1),
  ArrowDown: () => changeSpeed(-1), Home: () => step(-TICKS), End: () => step(TICKS),
  a: () => turn(-10, 0), d: () => turn(10, 0), w: () => turn(0, 5), s: () => turn(0, -5),
  "+": () => zoom(1.15), "=": () => zoom(1.15), "-": () => zoom(1 / 1.15), 0: resetView,
};
document.addEventListener("keydown", event => {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const {tagName, type} = event.target;                         // controls keep the keys that they use
  const typing = tagName === "SELECT" || (tagName === "INPUT" && type === "search");
  const pressing = key === " " && (tagName === "BUTTON" || tagName === "SUMMARY" || type === "checkbox");
  const sliding = type === "range" && event.target !== $("time") && /^Arrow|^Home$|^End$/.test(key);
  if (typing || pressing || sliding || event.ctrlKey || event.metaKey || event.altKey || !KEYS[key]) return;
  event.preventDefault();
  KEYS[key](event);
});

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  readColours();
  seen.forEach(drawStrip);
  update();
}

function find(words) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  let found = 0;
  for (const box of $("clips").children) {
    const title = box.querySelector("h2").textContent.toLowerCase();
    box.hidden = !wanted.every(word => title.includes(word));
    found += !box.hidden;
  }
  $("nothing").hidden = found > 0;
}

/** size 0 to 1: width of a cell; in a comparison 0 is the width that shows all columns. */
function setSize(size) {
  const compared = data.columns.length > 0;
  if (compared && size === 0) $("clips").style.removeProperty("--cell");
  else $("clips").style.setProperty("--cell", `${Math.round(140 + 560 * size)}px`);
}

function start() {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  setTheme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
  const main = $("clips");
  if (data.columns.length) {
    main.classList.add("rows");
    main.style.setProperty("--columns", data.columns.length);
    $("size").value = 0;
    for (const {title, clips} of data.rows) {
      const row = make("section", main, "row");
      make("h2", row, "", title);
      const cells = make("div", row);
      clips.forEach((number, column) => {
        if (number === null) make("p", cells, "card absent", `${data.columns[column]}: no clip`);
        else addCard(data.clips[number], cells, data.columns[column]);
      });
    }
  } else for (const clip of data.clips) addCard(clip, main, clip.title);
  if (cards.size === 1) document.querySelector(".card").classList.add("large");
  main.classList.toggle("plain", !data.clips.some(clip => clip.codes));
  setSize(Number($("size").value));
  $("find-label").hidden = main.children.length < 2;
  $("time").max = TICKS - 1;
  $("play").onclick = () => play(!state.playing);
  $("time").oninput = event => { play(false); seek(Number(event.target.value)); };
  $("speed").onchange = event => setSpeed(Number(event.target.value));
  $("find").oninput = event => find(event.target.value);
  $("size").oninput = event => setSize(Number(event.target.value));
  for (const name of ["path", "feet", "follow"]) $(name).onchange = event => {
    state[name] = event.target.checked;
    update();
  };
  $("in").onclick = () => zoom(1.15);
  $("out").onclick = () => zoom(1 / 1.15);
  $("reset").onclick = resetView;
  $("theme").onclick = () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  showTime();
}

window.viewer = {state, joints};
start();
})();
