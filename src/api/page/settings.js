// The form and the settings of a job, by the names of /jobs.

const $ = (id) => document.getElementById(id);
const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
const checked = (name) => document.querySelector(`[name=${name}]:checked`)?.value;
let tables = { standard: {}, high: {} };

/** What the form says, without pictures; an empty field leaves the choice to the server. */
export function read() {
  const ratio = checked("ratio");
  const [width, height] = (ratio ?? "").split("x").map(Number);
  const loras = [...document.querySelectorAll("#loras .lora")]
    .map((row) => ({ name: row.querySelector("select").value, scale: Number(row.querySelector("input").value) }))
    .filter((lora) => lora.name);
  return dropUndefined({
    prompt: $("prompt").value, negative_prompt: $("negative").value.trim() || undefined,
    ...(height ? { width, height } : { aspect_ratio: ratio, resolution: checked("resolution") }),
    steps: number("steps"), guidance_scale: number("guidance"), seed: number("seed"),
    num_images: number("pictures"), clip_skip: number("clipSkip"), scheduler: $("scheduler").value.trim() || undefined,
    model: $("model").value || undefined, loras: loras.length ? loras : undefined,
  });
}

export const dropUndefined = (object) =>
  Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined));

/** Puts settings into the form; gives the names of what could not be restored. */
export function write(settings) {
  const lacking = [];
  $("prompt").value = settings.prompt ?? "";
  $("negative").value = settings.negative_prompt ?? "";
  for (const [id, value] of [["steps", settings.steps], ["guidance", settings.guidance_scale],
    ["seed", settings.seed], ["pictures", settings.num_images ?? 1], ["clipSkip", settings.clip_skip]]) {
    $(id).value = value ?? "";
  }
  $("scheduler").value = settings.scheduler ?? "";
  if (settings.strength) $("strength").value = settings.strength;
  writeSize(settings);
  if (settings.model && !choose($("model"), settings.model)) lacking.push(`the model ${settings.model}`);
  $("loras").replaceChildren();
  for (const { name, scale } of settings.loras ?? []) {
    if (!addLora(name, scale)) lacking.push(`the LoRA ${name}`);
  }
  addLora();
  if (settings.strength !== undefined) lacking.push("the start picture");
  lacking.push(...settings.extra ?? []);
  $("form").dispatchEvent(new Event("input"));
  return lacking;
}

function writeSize({ aspect_ratio, resolution, width, height }) {
  if (!aspect_ratio && width) {
    // A size of the table is shown by its name.
    const find = (table) => Object.keys(table)
      .find((ratio) => ratio !== "Auto" && table[ratio][0] === width && table[ratio][1] === height);
    [aspect_ratio, resolution] = find(tables.standard) ? [find(tables.standard), "standard"]
      : find(tables.high) ? [find(tables.high), "high"] : [`${width}x${height}`, undefined];
  }
  for (const custom of document.querySelectorAll("#ratios .custom")) custom.remove();
  if (aspect_ratio?.includes("x")) addRatio(aspect_ratio, [width, height]).classList.add("custom");
  const ratio = document.querySelector(`[name=ratio][value="${CSS.escape(aspect_ratio ?? "1:1")}"]`);
  if (ratio) ratio.checked = true;
  document.querySelector(`[name=resolution][value=${resolution ?? "standard"}]`).checked = true;
}

/** Fills in what the server offers. */
export function offer(state) {
  tables = state.size_table;
  const shape = ([width, height]) => width / height;
  const { standard, high } = tables;
  const before = checked("ratio") ?? "1:1";
  const ratios = Object.keys(standard).filter((ratio) => ratio !== "Auto");
  $("ratios").replaceChildren();
  for (const ratio of ratios.sort((a, b) => shape(standard[a]) - shape(standard[b]))) addRatio(ratio, standard[ratio]);
  document.querySelector(`[name=ratio][value="${CSS.escape(before)}"]`)?.click();
  // A small model makes one size of each shape.
  $("resolutions").hidden = ratios.every((ratio) => `${standard[ratio]}` === `${high[ratio]}`);
  for (const [id, value] of [["steps", state.optimizations.steps], ["guidance", state.optimizations.guidance_scale]]) {
    $(id).placeholder = value;
    follow(document.querySelector(`[data-for=${id}]`));
  }
  const models = state.models ?? [state.model];
  $("model").replaceChildren(...models.map((name) => new Option(name, name === models[0] ? "" : name)));
  loras = state.loras;
  $("loras").replaceChildren();
  addLora();
}

function addRatio(ratio, [width, height]) {
  const label = document.createElement("label");
  const input = Object.assign(document.createElement("input"), { type: "radio", name: "ratio", value: ratio });
  const box = document.createElement("i");
  const side = 18 / Math.sqrt(width * height);
  box.style.cssText = `width:${width * side}px;height:${height * side}px`;
  label.append(input, box, ratio.replace("x", "×"));
  $("ratios").append(label);
  return label;
}

/** Width and height as the form says, or nothing. */
export function size() {
  const ratio = checked("ratio");
  return tables[checked("resolution")]?.[ratio] ?? (ratio?.includes("x") ? ratio.split("x") : []);
}

let loras = [];
/** Adds a LoRA's row; without a name, an empty one to choose from. False where there is no such LoRA. */
export function addLora(name = "", scale = 1) {
  if (!loras.length || (name && !loras.includes(name))) return !name;
  const row = Object.assign(document.createElement("div"), { className: "lora" });
  const select = Object.assign(document.createElement("select"), { ariaLabel: "LoRA" });
  select.add(new Option("No LoRA", ""));
  for (const offered of loras) select.add(new Option(offered, offered));
  select.value = name;
  const input = Object.assign(document.createElement("input"), {
    type: "number", min: -4, max: 4, step: "any", value: scale, ariaLabel: "How much of the LoRA", hidden: !name,
  });
  select.addEventListener("change", () => {
    input.hidden = !select.value;
    const rows = [...document.querySelectorAll("#loras .lora")];
    const empty = rows.filter((other) => !other.querySelector("select").value);
    if (!empty.length) addLora();
    for (const other of empty.slice(1)) other.remove();
  });
  row.append(select, input);
  $("loras").append(row);
  return true;
}

function choose(select, name) {
  const option = [...select.options].find((option) => option.text === name);
  if (option) option.selected = true;
  return Boolean(option);
}

/** A slider and its number: the slider shows the default where the number is empty. */
function follow(slider) {
  const input = $(slider.dataset.for);
  slider.value = input.value || input.placeholder;
}
for (const slider of document.querySelectorAll("[data-for]")) {
  slider.addEventListener("input", () => { $(slider.dataset.for).value = slider.value; });
  $("form").addEventListener("input", (event) => { if (event.target !== slider) follow(slider); });
}
