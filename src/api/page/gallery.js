// The pictures of this session: one large on the stage, all of them as tiles.

import * as jobs from "./jobs.js";
import { recipe } from "./png.js";

const $ = (id) => document.getElementById(id);
const shots = []; // The newest first: { job, index, tile } and, once made, { blob, image, seed, made }.
let shown = null;
const changed = new EventTarget();

/** Calls back with each job that has ended. */
export const onEnd = (listener) => changed.addEventListener("ended", (event) => listener(event.detail));
export const current = () => shown;

/** Tiles for a job that was submitted: `sent` is its body, `size` that of its pictures. They follow it to its end. */
export async function follow(status, sent, size) {
  const job = { id: status.id, sent, size, status, previews: [], isOld: status.state === "done" };
  const added = Array.from({ length: status.pictures }, (_, index) => makeShot(job, index));
  shots.unshift(...added);
  $("gallery").prepend(...added.map((shot) => shot.tile.parentElement));
  select(added[0]);
  try {
    for await (const { name, data } of jobs.events(job.id)) {
      if (name === "preview") job.previews[data.picture] = data.image;
      else job.status = data;
      if (name === "progress" && shown?.job === job && shown.index === data.picture - 1) select(added[data.picture]);
      if (name === "done") await finish(job, added);
      for (const shot of added) draw(shot);
      if (shown?.job === job) stage();
    }
  } catch (error) {
    job.status = { ...job.status, state: "failed", error: error.message };
    for (const shot of added) draw(shot);
    if (shown?.job === job) stage();
  }
  if (job.status.state === "cancelled") for (const shot of added) drop(shot);
  changed.dispatchEvent(new CustomEvent("ended", { detail: job }));
}

async function finish(job, added) {
  await Promise.all(job.status.images.map(async (path, i) => {
    const blob = await jobs.picture(path);
    const [seed, made] = [job.status.seeds[i], await recipe(blob)];
    Object.assign(added[i], { blob, image: URL.createObjectURL(blob), seed, made });
  }));
}

function makeShot(job, index) {
  const tile = Object.assign(document.createElement("button"), { type: "button", className: "tile" });
  tile.append(new Image(), document.createElement("span"));
  const shot = { job, index, tile };
  tile.addEventListener("click", () => select(shot));
  document.createElement("li").append(tile);
  draw(shot);
  return shot;
}

const isRunning = ({ job }) => ["waiting", "running", "decoding"].includes(job.status.state);
/** 0 to 1, for one picture of a job. */
function share({ job, index }) {
  const { picture, step, steps } = job.status;
  return index < picture ? 1 : index > picture || !steps ? 0 : step / steps;
}

function words(shot) {
  const { state, ahead, picture, pictures, step, steps, error } = shot.job.status;
  const number = pictures > 1 ? `picture ${shot.index + 1} of ${pictures}` : "";
  if (state === "failed") return error;
  if (state === "waiting") return ahead ? `Waiting, ${ahead} ahead` : "Waiting for its turn";
  if (shot.index < picture) return ["Made", number].filter(Boolean).join(", ");
  if (shot.index > picture) return ["Next", number].filter(Boolean).join(", ");
  const doing = state === "decoding" ? "Decoding" : steps ? `Step ${step} of ${steps}` : "Reading the prompt";
  return [doing, number].filter(Boolean).join(", ");
}

function draw(shot) {
  const { tile, job } = shot;
  const [image, label] = tile.children;
  const source = shot.image ?? job.previews[shot.index];
  if (source && image.src !== source) image.src = source;
  image.hidden = !source;
  image.alt = "";
  tile.ariaLabel = `${job.sent.prompt}${shot.image ? `, seed ${shot.seed}` : `: ${words(shot)}`}`;
  tile.classList.toggle("making", isRunning(shot));
  tile.classList.toggle("failed", job.status.state === "failed");
  tile.style.setProperty("--share", share(shot));
  const { state } = job.status;
  label.textContent = shot.image ? "" : state === "failed" ? "Failed" : state === "waiting" ? "Waiting" : "";
}

export function select(shot, focus = false) {
  shown = shot ?? null;
  for (const { tile } of shots) {
    tile.ariaCurrent = tile === shown?.tile;
    tile.tabIndex = tile === shown?.tile ? 0 : -1;
  }
  if (focus) shown?.tile.focus();
  stage();
}

/** Moves through the gallery. */
export function step(by) {
  const next = shots[shots.indexOf(shown) + by];
  if (next) select(next, true);
}

function stage() {
  $("stage").hidden = !shown;
  $("empty").hidden = shots.length > 0;
  if (!shown) return;
  const { job, image, seed } = shown;
  const { sent, status } = job;
  const picture = $("shown");
  const source = image ?? job.previews[shown.index];
  picture.hidden = !source;
  if (source && picture.src !== source) picture.src = source;
  picture.alt = image ? sent.prompt : "A preview of the picture that is being made";
  const [width, height] = job.size;
  $("frame").style.setProperty("--ratio", width / height);
  $("frame").classList.toggle("waiting", !source);
  $("frame").classList.toggle("failed", status.state === "failed");
  $("making").hidden = Boolean(image);
  $("progress").hidden = $("cancel").hidden = !isRunning(shown);
  if (status.state === "waiting" || (isRunning(shown) && !status.steps)) $("progress").removeAttribute("value");
  else $("progress").value = share(shown);
  $("step").textContent = image ? "" : words(shown);
  $("about").textContent = sent.prompt;
  $("facts").replaceChildren(...facts(shown).map(([name, value]) => {
    const fact = document.createElement("div");
    fact.append(Object.assign(document.createElement("dt"), { textContent: name }),
      Object.assign(document.createElement("dd"), { textContent: value }));
    return fact;
  }));
  for (const id of ["save", "refine", "repaint"]) $(id).hidden = !image;
  if (image) Object.assign($("save"), { href: image, download: `aquatint-${seed}.png` });
  $("remove").hidden = isRunning(shown);
}

// Pictures of small models are shown as they are: blocks, not a blur.
$("shown").addEventListener("load", () => {
  $("shown").classList.toggle("small", Boolean(shown?.image) && $("shown").naturalWidth < 200);
});

function facts({ job, seed, made }) {
  const { sent } = job;
  const rows = [
    ["Seed", seed ?? sent.seed], ["Size", made && `${made.width} × ${made.height}`],
    ["Steps", made?.steps ?? sent.steps], ["Guidance", made?.guidance_scale ?? sent.guidance_scale],
    ["Sampler", made?.scheduler ?? sent.scheduler], ["Model", made?.model ?? sent.model],
    ["LoRA", sent.loras?.map(({ name, scale }) => `${name} ${scale}`).join(", ")],
    ["Strength", sent.image && sent.strength], ["Not", sent.negative_prompt],
  ];
  return rows.filter(([, value]) => value !== undefined && value !== "" && value !== false);
}

/** Takes a shot out of the gallery; true if it was the last of its job. */
export function drop(shot) {
  const at = shots.indexOf(shot);
  shots.splice(at, 1);
  shot.tile.parentElement.remove();
  if (shot.image) URL.revokeObjectURL(shot.image);
  if (shown === shot) select(shots[Math.min(at, shots.length - 1)]);
  else stage();
  return !shots.some((other) => other.job === shot.job);
}
