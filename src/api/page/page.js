// Wires the form, the server and the gallery together.

import * as gallery from "./gallery.js";
import * as jobs from "./jobs.js";
import { recipe } from "./png.js";
import * as settings from "./settings.js";
import * as start from "./start.js";

const $ = (id) => document.getElementById(id);
const on = (id, event, listener) => $(id).addEventListener(event, listener);
const JOBS = "aquatint-jobs";
const FORM = "aquatint-form";
const EXAMPLES = [
  "a lighthouse on a cliff at sunset", "a red apple on a wooden table", "a fox in deep snow, ink drawing",
];
let state = null; // What /health said last.

/** Says something in passing. */
let silence;
function say(text) {
  $("toast").textContent = text;
  clearTimeout(silence);
  silence = setTimeout(() => { $("toast").textContent = ""; }, 4000);
}

// --- The server ------------------------------------------------------------------------------------------------

async function health() {
  let pause = 1000;
  try {
    const now = await jobs.health();
    if (now.state === "ready") {
      pause = 5000;
      const first = state?.model !== now.model || `${state?.loras}` !== `${now.loras}`;
      state = now;
      if (first) offer();
      const { running, waiting } = now.queue;
      const busy = running + waiting ? ` · ${running + waiting} in the queue` : "";
      const noise = now.random_weights ? " · random weights: its pictures are coloured noise" : "";
      $("server").textContent = `${now.model} on ${now.device}${busy}${noise}`;
    } else {
      $("server").textContent = now.state === "loading" ? "the model is loading …" : "the model could not be loaded";
    }
  } catch (error) {
    $("server").textContent = error.status ? error.message : "the server does not answer";
  }
  setTimeout(health, document.hidden ? 15000 : pause);
}

function offer() {
  const kept = sessionStorage.getItem(FORM);
  settings.offer(state);
  const [width, height] = state.size_table.high["1:1"];
  start.limit(width * height);
  if (kept) settings.write(JSON.parse(kept));
  showSize();
}

// --- Generate --------------------------------------------------------------------------------------------------

function showSize() {
  const size = start.isSet() ? start.size() : settings.size();
  $("size").value = size.join(" × ");
}

/** The pictures' size: the start picture's, or what the form says. */
const sizeOf = (body) => {
  if (body.image) return start.size();
  return body.width ? [body.width, body.height] : state?.size_table[body.resolution]?.[body.aspect_ratio] ?? [1, 1];
};

async function generate() {
  $("error").textContent = "";
  if (!$("form").reportValidity()) return;
  const body = settings.read();
  if (start.isSet()) {
    // The pictures get its size.
    for (const name of ["aspect_ratio", "resolution", "width", "height"]) delete body[name];
    Object.assign(body, start.fields());
  }
  $("go").disabled = true;
  try {
    const status = await jobs.submit(body);
    remember(status.id, body);
    gallery.follow(status, body, sizeOf(body));
    if (matchMedia("(width < 52rem)").matches) $("results").scrollIntoView({ behavior: "smooth" });
  } catch (error) {
    $("error").textContent = error.status ? error.message : "The server does not answer.";
  } finally {
    $("go").disabled = false;
  }
}

on("form", "submit", (event) => {
  event.preventDefault();
  generate();
});
on("form", "input", () => {
  showSize();
  $("strengthShown").value = $("strength").value;
  sessionStorage.setItem(FORM, JSON.stringify(settings.read()));
});
on("anySeed", "click", () => {
  $("seed").value = "";
  $("form").dispatchEvent(new Event("input"));
});

gallery.onEnd((job) => {
  const { state: end, pictures } = job.status;
  if (end === "done" && !job.isOld) say(pictures > 1 ? `${pictures} pictures are done` : "The picture is done");
  if (end === "cancelled") {
    forget(job.id);
    say("Cancelled");
  }
});

// --- A reload keeps the session: jobs stay on the server for a while ---------------------------------------------

const kept = () => JSON.parse(sessionStorage.getItem(JOBS) ?? "[]");

function remember(id, { image, mask, ...sent }) {
  const [width, height] = sizeOf({ image, mask, ...sent });
  const entry = { id, sent: { ...sent, ...(image && { image: true }) }, size: [width, height] };
  sessionStorage.setItem(JOBS, JSON.stringify([...kept(), entry].slice(-50)));
}

const forget = (id) => sessionStorage.setItem(JOBS, JSON.stringify(kept().filter((entry) => entry.id !== id)));

async function recall() {
  for (const { id, sent, size } of kept()) {
    const status = await jobs.status(id).catch(() => null);
    if (status && status.state !== "cancelled") gallery.follow(status, sent, size);
  }
}

// --- What can be done with a picture -------------------------------------------------------------------------------

/** A finished picture, or nothing. */
const finished = () => (gallery.current()?.image ? gallery.current() : null);

async function refine() {
  const shot = finished();
  if (!shot) return;
  await start.startFrom(shot.blob);
  if (!$("prompt").value) $("prompt").value = shot.job.sent.prompt;
  $("start").scrollIntoView({ behavior: "smooth", block: "nearest" });
}

async function repaint() {
  if (!finished()) return;
  await refine();
  await start.paintMask();
}

async function paintStart() {
  if (await start.paintMask()) say("What you painted over is made anew: say in the prompt what should be there");
}

function useSettings() {
  const shot = gallery.current();
  if (!shot) return;
  restored(shot.made ?? shot.job.sent);
}

function restored(found) {
  const lacking = settings.write(found);
  say(lacking.length ? `Settings restored, but not ${lacking.join(" and ")}` : "Settings restored");
  $("prompt").focus();
}

/** The picture as two commands: one submits, one waits for the file. */
function asCurl({ job, index, seed }) {
  const at = (path) => new URL(path, location.href).href;
  const { num_images, ...rest } = job.sent;
  const body = { ...rest, seed: seed ?? (rest.seed === undefined ? undefined : rest.seed + index) };
  return [
    `id=$(curl -sS '${at("jobs")}' -H 'content-type: application/json' --data-binary @- <<'JSON' | sed 's/.*"id": *"\\([^"]*\\)".*/\\1/'`,
    JSON.stringify(body, null, 2), "JSON", ")",
    `curl -fsS "${at("jobs")}/$id/images/0?wait=300" -o "aquatint-$id.png"`, "",
  ].join("\n");
}

async function copyCurl() {
  const shot = gallery.current();
  if (!shot) return;
  if (shot.job.sent.image === true) return say("The start picture was not kept over the reload: make it anew");
  await navigator.clipboard.writeText(asCurl(shot));
  say("Copied as curl");
}

function cancel() {
  const shot = gallery.current();
  if (shot && !shot.image && shot.job.status.state !== "failed") jobs.cancel(shot.job.id).catch((e) => say(e.message));
}

function remove() {
  const shot = gallery.current();
  if (!shot || !gallery.drop(shot)) return;
  forget(shot.job.id);
  jobs.cancel(shot.job.id).catch(() => {});
}

on("refine", "click", refine);
on("repaint", "click", repaint);
on("again", "click", useSettings);
on("curl", "click", copyCurl);
on("cancel", "click", cancel);
on("remove", "click", remove);

// --- Pictures that come in -----------------------------------------------------------------------------------------

let choosing = "start";

async function take(file, action) {
  if (!file) return;
  try {
    if (action === "restore") {
      const found = await recipe(file);
      if (!found) return say("This picture does not say how it was made");
      return restored(found);
    }
    await start.startFrom(file);
  } catch {
    say("This is no picture that can be read");
  }
}

function choose(action) {
  choosing = action;
  $("file").accept = action === "restore" ? "image/png" : "image/png,image/jpeg,image/webp";
  $("file").click();
}

on("choose", "click", () => choose("start"));
on("restore", "click", () => choose("restore"));
on("file", "change", () => {
  take($("file").files[0], choosing);
  $("file").value = "";
});
on("unstart", "click", () => start.startFrom(null));
on("paint", "click", paintStart);
on("start", "change", () => {
  const set = start.isSet();
  $("shape").disabled = set;
  $("go").firstChild.textContent = set ? "Refine " : "Generate ";
  showSize();
});

document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
  if (file) take(file, "start");
});

const brings = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragenter", (event) => { if (brings(event)) $("dropping").hidden = false; });
document.addEventListener("dragover", (event) => {
  if (!brings(event)) return;
  event.preventDefault();
  for (const zone of $("dropping").children) zone.classList.toggle("over", zone === event.target);
});
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("dropping").hidden = true; });
document.addEventListener("drop", (event) => {
  if (!brings(event)) return;
  event.preventDefault();
  $("dropping").hidden = true;
  take(event.dataTransfer.files[0], event.target.dataset?.drop ?? "start");
});

// --- Keyboard and theme ----------------------------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    generate();
  } else if (event.key === "Escape") {
    cancel();
  }
});

const KEYS = {
  ArrowLeft: () => gallery.step(-1), ArrowRight: () => gallery.step(1), d: () => $("save").click(), c: copyCurl,
  r: refine, m: repaint, Delete: remove,
};
on("gallery", "keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
});
on("help", "click", () => $("shortcuts").showModal());

const THEMES = ["light dark", "light", "dark"];
function theme(scheme) {
  document.documentElement.style.colorScheme = scheme;
  $("theme").textContent = { light: "Light", dark: "Dark" }[scheme] ?? "Auto";
  $("theme").ariaLabel = `Theme: ${$("theme").textContent}`;
  localStorage.setItem("aquatint-theme", scheme);
}
on("theme", "click", () => {
  const now = THEMES.indexOf(localStorage.getItem("aquatint-theme"));
  theme(THEMES[(now + 1) % THEMES.length]);
});

theme(localStorage.getItem("aquatint-theme") ?? THEMES[0]);
for (const example of EXAMPLES) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: example });
  button.addEventListener("click", () => {
    $("prompt").value = example;
    $("prompt").focus();
  });
  $("examples").append(button);
}
$("strengthShown").value = $("strength").value;
health();
recall();
