// What a PNG says about how it was made: our own recipe, or the Stable Diffusion web UI's text.

/** Settings by the names of /jobs, or null. */
export async function recipe(file) {
  const texts = await textChunks(new Uint8Array(await file.arrayBuffer()));
  try {
    if (texts.aquatint) return fromRecipe(JSON.parse(texts.aquatint));
  } catch { /* The other text may do. */ }
  return texts.parameters ? fromParameters(texts.parameters) : null;
}

function fromRecipe(made) {
  return {
    prompt: made.prompt, negative_prompt: made.negative_prompt ?? "", width: made.width, height: made.height,
    steps: made.num_inference_steps, guidance_scale: made.guidance_scale, seed: made.seed,
    scheduler: made.scheduler, clip_skip: made.clip_skip || undefined, strength: made.strength ?? undefined,
    loras: made.loras ?? [], model: made.model, extra: made.extra?.map(([name]) => `“${name}”`),
  };
}

/** `prompt\nNegative prompt: ...\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x768, Model: x` */
function fromParameters(text) {
  const at = text.lastIndexOf("\nSteps: ");
  if (at < 0) return null;
  const [prompt, negative_prompt = ""] = text.slice(0, at).split("\nNegative prompt: ");
  const fields = {};
  for (const [, name, value] of text.slice(at + 1).matchAll(/([\w ]+): ("(?:\\.|[^"\\])*"|[^,]*)(?:, |$)/g)) {
    fields[name] = value.startsWith('"') ? JSON.parse(value) : value;
  }
  const number = (name) => (fields[name] === undefined ? undefined : Number(fields[name]));
  const [width, height] = (fields.Size ?? "").split("x").map(Number);
  const loras = [];
  const words = prompt.replace(/ ?<lora:([^:>]+):([^>]+)>/g, (_, name, scale) => {
    loras.push({ name, scale: Number(scale) });
    return "";
  });
  const schedule = fields["Schedule type"];
  return {
    prompt: words, negative_prompt, width, height, steps: number("Steps"), guidance_scale: number("CFG scale"),
    seed: number("Seed"), strength: number("Denoising strength"), loras, model: fields.Model,
    clip_skip: number("Clip skip") > 1 ? number("Clip skip") - 1 : undefined,
    scheduler: schedule && schedule !== "Automatic" ? `${fields.Sampler} ${schedule}` : fields.Sampler,
  };
}

async function textChunks(bytes) {
  const texts = {};
  if (String.fromCharCode(...bytes.subarray(1, 4)) !== "PNG") return texts;
  const view = new DataView(bytes.buffer);
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const data = bytes.subarray(at + 8, at + 8 + length);
    const end = data.indexOf(0);
    const keyword = latin1(data.subarray(0, Math.max(end, 0)));
    if (kind === "tEXt") texts[keyword] = latin1(data.subarray(end + 1));
    if (kind === "zTXt") texts[keyword] = latin1(await inflate(data.subarray(end + 2)));
    if (kind === "iTXt") texts[keyword] = await internationalText(data, end);
    at += length + 12;
  }
  return texts;
}

/** Keyword, 0, compressed?, method, language, 0, translated keyword, 0, text in UTF-8. */
async function internationalText(data, end) {
  const text = data.subarray(data.indexOf(0, data.indexOf(0, end + 3) + 1) + 1);
  return new TextDecoder().decode(data[end + 1] ? await inflate(text) : text);
}

const latin1 = (bytes) => Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
