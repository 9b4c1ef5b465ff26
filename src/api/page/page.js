"use strict";

const $ = (id) => document.getElementById(id);
let busy = false;
let source = null; // The picture to refine, as base64.

/** The server's state: shown in the header, and the progress of the running job under the button. */
async function health() {
  try {
    const state = await (await fetch("health")).json();
    if (state.state === "ready") {
      const random = state.random_weights ? " · random weights: its pictures are coloured noise" : "";
      $("model").textContent = `${state.model} (${state.family}) on ${state.device}${random}`;
      offer(state);
    } else {
      $("model").textContent = state.state === "loading" ? "the model is loading …" : "the model could not be loaded";
    }
    const running = state.running;
    $("progress").hidden = !busy;
    $("progress").value = running && running.steps
      ? (running.picture + running.step / running.steps) / running.pictures : 0;
  } catch {
    $("model").textContent = "the server does not answer";
  }
  setTimeout(health, busy ? 400 : 5000);
}

/** Fills in what this model can do; once. */
function offer(state) {
  const select = $("aspectRatio");
  if (select.options.length) return;
  const { standard } = state.size_table;
  const order = Object.keys(standard).filter((r) => r !== "Auto").sort((a, b) => share(standard[a]) - share(standard[b]));
  for (const ratio of order) select.add(new Option(ratio, ratio, ratio === "1:1", ratio === "1:1"));
  $("steps").placeholder = state.optimizations.steps;
  $("guidanceScale").placeholder = state.optimizations.guidance_scale;
  $("strength").parentElement.hidden = state.refine_mode === "caption"; // There it has no effect.
}

const share = ([width, height]) => width / height;

/** What the form says; an empty field leaves the choice to the server. */
function config() {
  const config = { numImages: Number($("numImages").value) || 1 };
  for (const id of ["steps", "guidanceScale", "seed"]) if ($(id).value !== "") config[id] = Number($(id).value);
  if ($("negativePrompt").value.trim()) config.negativePrompt = $("negativePrompt").value;
  if (source) config.strength = Number($("strength").value);
  return config;
}

async function post(path, body) {
  const response = await fetch(path, {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
  });
  const reply = await response.json();
  if (!response.ok) throw new Error(typeof reply.detail === "string" ? reply.detail : JSON.stringify(reply.detail));
  return reply;
}

async function generate(event) {
  event.preventDefault();
  if (busy) return;
  busy = true;
  $("go").disabled = true;
  $("error").textContent = "";
  const prompt = $("prompt").value;
  try {
    const reply = source
      ? await post("refine", { refinePrompt: prompt, images: [source], config: config() })
      : await post("generate", {
        prompt, aspectRatio: $("aspectRatio").value || "1:1", resolution: $("resolution").value, config: config(),
      });
    reply.images.forEach((image, i) => show(image, prompt, reply.seeds[i], reply.processingTime));
  } catch (error) {
    $("error").textContent = error.message;
  } finally {
    busy = false;
    $("go").disabled = false;
    $("progress").hidden = true;
  }
}

function show(base64, prompt, seed, elapsedMs) {
  $("empty")?.remove();
  const url = `data:image/png;base64,${base64}`;
  const image = Object.assign(new Image(), { src: url, alt: prompt });
  image.onload = () => image.classList.toggle("small", image.naturalWidth < 200);
  const title = Object.assign(document.createElement("b"), { textContent: prompt });
  const facts = document.createTextNode(` · seed ${seed} · ${(elapsedMs / 1000).toFixed(1)} s`);
  const save = Object.assign(document.createElement("a"), {
    href: url, download: `aquatint-${seed}.png`, textContent: "Save",
  });
  const refine = Object.assign(document.createElement("button"), { type: "button", textContent: "Refine" });
  refine.onclick = () => refineFrom(base64, url);
  const again = Object.assign(document.createElement("button"), { type: "button", textContent: "Use seed" });
  again.onclick = () => { $("seed").value = seed; };
  const actions = document.createElement("div");
  actions.append(save, refine, again);
  const caption = document.createElement("figcaption");
  caption.append(title, facts, actions);
  const figure = document.createElement("figure");
  figure.append(image, caption);
  $("gallery").prepend(figure);
}

function refineFrom(base64, url) {
  source = base64;
  $("refining").hidden = !base64;
  $("go").textContent = base64 ? "Refine" : "Generate";
  if (url) $("source").src = url;
  $("prompt").focus();
}

$("form").addEventListener("submit", generate);
$("stopRefining").addEventListener("click", () => refineFrom(null));
$("strength").addEventListener("input", () => { $("strengthShown").value = $("strength").value; });
health();
