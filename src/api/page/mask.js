// The dialog in which a mask is painted over the start picture.

const $ = (id) => document.getElementById(id);
const UNDO = 20;
const dialog = $("painter");
const canvas = $("mask");
const context = canvas.getContext("2d", { willReadFrequently: true });
const cursor = $("cursor");
let history = [];
let stroke = null; // The last point of the stroke that is being drawn.
let point = null; // Where the keyboard's brush is.

const erasing = () => dialog.querySelector("[value=eraser]").checked;
const onScreen = () => canvas.getBoundingClientRect().width / canvas.width || 1;
/** The brush's width in the picture's pixels: its size on the screen is what the slider says. */
const width = () => Number($("brush").value) / onScreen();

/** Lets the user paint over a picture, beginning with an earlier mask; gives the new one, null for an empty one, and
 * undefined when the user thinks better of it. */
export function paint(picture, earlier) {
  for (const layer of [$("backdrop"), canvas]) [layer.width, layer.height] = [picture.width, picture.height];
  $("easel").style.setProperty("--ratio", picture.width / picture.height);
  $("backdrop").getContext("2d").drawImage(picture, 0, 0);
  if (earlier) context.drawImage(earlier, 0, 0);
  history = [];
  point = { x: picture.width / 2, y: picture.height / 2 };
  dialog.returnValue = "";
  dialog.showModal();
  canvas.focus();
  return new Promise((answer) => {
    dialog.addEventListener("close", () => {
      if (dialog.returnValue !== "done") return answer(undefined);
      const copy = document.createElement("canvas");
      [copy.width, copy.height] = [canvas.width, canvas.height];
      copy.getContext("2d").drawImage(canvas, 0, 0);
      answer(isEmpty() ? null : copy);
    }, { once: true });
  });
}

/** White where the mask is painted, black elsewhere: what the server reads. */
export function blackAndWhite(mask) {
  const copy = document.createElement("canvas");
  [copy.width, copy.height] = [mask.width, mask.height];
  const into = copy.getContext("2d");
  into.drawImage(mask, 0, 0);
  into.globalCompositeOperation = "source-in";
  into.fillStyle = "white";
  into.fillRect(0, 0, copy.width, copy.height);
  into.globalCompositeOperation = "destination-over";
  into.fillStyle = "black";
  into.fillRect(0, 0, copy.width, copy.height);
  return copy;
}

const pixels = () => context.getImageData(0, 0, canvas.width, canvas.height);
const isEmpty = () => !pixels().data.some((value, i) => i % 4 === 3 && value > 127);

function remember() {
  history.push(pixels());
  if (history.length > UNDO) history.shift();
}

function line(from, to) {
  context.globalCompositeOperation = erasing() ? "destination-out" : "source-over";
  context.strokeStyle = getComputedStyle(canvas).color;
  context.lineWidth = width();
  context.lineCap = "round";
  context.beginPath();
  context.moveTo(from.x, from.y);
  context.lineTo(to.x, to.y);
  context.stroke();
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return { x: (event.clientX - box.left) / onScreen(), y: (event.clientY - box.top) / onScreen() };
}

function showCursor(at) {
  const size = Number($("brush").value);
  cursor.style.cssText = `display:block;width:${size}px;height:${size}px;`
    + `left:${at.x * onScreen()}px;top:${at.y * onScreen()}px`;
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId);
  remember();
  stroke = place(event);
  line(stroke, stroke);
});
canvas.addEventListener("pointermove", (event) => {
  point = place(event);
  if (event.pointerType !== "touch") showCursor(point);
  if (!stroke) return;
  for (const part of event.getCoalescedEvents?.() ?? [event]) {
    const to = place(part);
    line(stroke, to);
    stroke = to;
  }
});
for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { stroke = null; });
canvas.addEventListener("pointerleave", () => { cursor.style.display = "none"; });

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
canvas.addEventListener("keydown", (event) => {
  const move = MOVES[event.key];
  if (move) {
    const far = (event.shiftKey ? 40 : 8) / onScreen();
    const inside = (value, most) => Math.min(Math.max(value, 0), most);
    point = { x: inside(point.x + move[0] * far, canvas.width), y: inside(point.y + move[1] * far, canvas.height) };
  } else if (event.key === " ") {
    remember();
    line(point, point);
  } else {
    return;
  }
  event.preventDefault();
  showCursor(point);
});
dialog.addEventListener("keydown", (event) => {
  if (event.key === "[" || event.key === "]") {
    $("brush").value = Number($("brush").value) + (event.key === "]" ? 8 : -8);
    showCursor(point);
  } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) {
    undo();
  } else {
    return;
  }
  event.preventDefault();
});

function undo() {
  if (history.length) context.putImageData(history.pop(), 0, 0);
}

$("undo").addEventListener("click", undo);
$("clear").addEventListener("click", () => {
  remember();
  context.clearRect(0, 0, canvas.width, canvas.height);
});
$("invert").addEventListener("click", () => {
  remember();
  context.globalCompositeOperation = "source-out";
  context.fillStyle = getComputedStyle(canvas).color;
  context.fillRect(0, 0, canvas.width, canvas.height);
});
