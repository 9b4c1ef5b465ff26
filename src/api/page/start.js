// The picture to start from, and its mask.

import { blackAndWhite, paint } from "./mask.js";

const $ = (id) => document.getElementById(id);
let picture = null; // A canvas of the size that is sent.
let mask = null; // Another one, transparent where nothing is painted.
let mostPixels = 1024 * 1024;

/** Larger pictures are made smaller: no more pixels than the model makes. */
export function limit(pixels) {
  mostPixels = pixels;
}

/** Starts from a picture: a file, a blob, or null for none. */
export async function startFrom(file) {
  picture = file && await shrunk(file);
  mask = null;
  show();
}

/** Opens the mask for painting; true if one is there afterwards. */
export async function paintMask() {
  const painted = await paint(picture, mask);
  if (painted !== undefined) mask = painted;
  show();
  return mask !== null;
}

/** What a job needs of it, by the names of /jobs. */
export function fields() {
  if (!picture) return {};
  const base64 = (canvas) => canvas.toDataURL("image/png").split(",")[1];
  return {
    image: base64(picture), strength: Number($("strength").value),
    ...(mask && { mask: base64(blackAndWhite(mask)) }),
  };
}

export const isSet = () => picture !== null;
export const size = () => [picture.width, picture.height];

async function shrunk(file) {
  const image = await createImageBitmap(file);
  const scale = Math.min(1, Math.sqrt(mostPixels / (image.width * image.height)));
  // A size that every model can make; only pictures that shrink anyway are bent to it.
  const side = (length) => (scale < 1 ? Math.max(8, Math.round(length * scale / 8) * 8) : length);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [side(image.width), side(image.height)];
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas;
}

function show() {
  $("drop").hidden = picture !== null;
  $("started").hidden = picture === null;
  if (picture) {
    $("startImage").src = picture.toDataURL("image/png");
    [$("startMask").width, $("startMask").height] = [picture.width, picture.height];
    if (mask) $("startMask").getContext("2d").drawImage(mask, 0, 0);
    $("paint").textContent = mask ? "Edit mask" : "Paint mask";
  }
  $("start").dispatchEvent(new Event("change", { bubbles: true }));
}
