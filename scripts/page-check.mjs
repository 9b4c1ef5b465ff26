#!/usr/bin/env -S node --experimental-websocket
// Uses the web page as a person would, in a real browser, against a real server with the built-in model: generate,
// watch, cancel, refine, repaint with a mask, restore from a PNG, reload. Leaves screenshots for eyes to judge.
//
//     scripts/page-check.mjs [BINARY [FOLDER FOR SCREENSHOTS]]
//
// Needs node 20 or newer and chromium; no packages. The browser is driven over its DevTools protocol.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const binary = process.argv[2] ?? "target/release/aquatint";
const shots = process.argv[3] ?? "target/page";
/** Machines are slow now and then. */
const PATIENCE_MS = Number(process.env.PATIENCE_MS ?? 60_000);
const folder = mkdtempSync(join(tmpdir(), "aquatint-page-"));
const children = [];
const pause = (ms) => new Promise((resume) => setTimeout(resume, ms));

async function until(what, holds, patience = PATIENCE_MS) {
  const end = Date.now() + patience;
  for (;;) {
    const value = await holds();
    if (value) return value;
    if (Date.now() > end) {
      await page?.screenshot("failed").catch(() => {});
      throw new Error(`never: ${what}`);
    }
    await pause(50);
  }
}

function start(command, args, options = {}) {
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], ...options });
  child.log = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (text) => { child.log += text; });
  child.on("error", (error) => { child.log += error; });
  children.push(child);
  return child;
}

async function startServer() {
  const server = start(binary, ["serve", "--port", "0"]);
  const found = await until("the server listens", () => /http:\/\/[\d.:]+/.exec(server.log));
  return `${found[0]}/`;
}

async function startBrowser() {
  const profile = join(folder, "profile");
  const browser = start("chromium", [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--force-prefers-reduced-motion",
    "--remote-debugging-port=0", `--user-data-dir=${profile}`, "about:blank",
  ]);
  const file = join(profile, "DevToolsActivePort");
  await until("the browser is there", () => existsSync(file) && readFileSync(file, "utf8").includes("\n"));
  const port = readFileSync(file, "utf8").split("\n")[0];
  const tabs = await until("it has a tab", async () => {
    const all = await (await fetch(`http://127.0.0.1:${port}/json`)).json().catch(() => []);
    return all.find(({ type }) => type === "page");
  });
  assert.ok(browser.exitCode === null, browser.log);
  return tabs.webSocketDebuggerUrl;
}

/** A tab, by the DevTools protocol. */
class Page {
  #socket; #last = 0; #waiting = new Map();
  complaints = [];
  requests = [];

  static async open(url) {
    const page = new Page();
    page.#socket = new WebSocket(url);
    await new Promise((resolve, reject) => Object.assign(page.#socket, { onopen: resolve, onerror: reject }));
    page.#socket.onmessage = ({ data }) => page.#hear(JSON.parse(data));
    for (const domain of ["Page", "Runtime", "Network", "Log"]) await page.send(`${domain}.enable`);
    return page;
  }

  #hear({ id, method, params, result, error }) {
    if (id) {
      const { resolve, reject } = this.#waiting.get(id);
      this.#waiting.delete(id);
      return error ? reject(new Error(error.message)) : resolve(result);
    }
    if (method === "Network.requestWillBeSent") this.requests.push(params.request.url);
    if (method === "Runtime.exceptionThrown") this.complaints.push(params.exceptionDetails.exception?.description);
    if (method === "Log.entryAdded" && params.entry.level === "error") this.complaints.push(`${params.entry.text} ${params.entry.url}`);
    if (method === "Runtime.consoleAPICalled" && params.type === "error") this.complaints.push(JSON.stringify(params.args));
  }

  send(method, params = {}) {
    const id = ++this.#last;
    this.#socket.send(JSON.stringify({ id, method, params }));
    return new Promise((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
  }

  async run(expression) {
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) throw new Error(`${expression}: ${exceptionDetails.exception?.description}`);
    return result.value;
  }

  async visit(url) {
    await this.send("Page.navigate", { url });
    await until(`${url} is there`, () => this.run("document.readyState === 'complete'"));
  }

  async size(width, height, mobile = false) {
    await this.send("Emulation.setTouchEmulationEnabled", { enabled: mobile });
    return this.send("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: mobile ? 2 : 1, mobile });
  }

  theme(value) {
    return this.send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value }] });
  }

  async middle(selector) {
    const box = await this.run(`(() => {
      const found = document.querySelector(${JSON.stringify(selector)});
      found.scrollIntoView({ block: "center", behavior: "instant" });
      const { x, y, width, height } = found.getBoundingClientRect();
      return { x: x + width / 2, y: y + height / 2, width, height };
    })()`);
    assert.ok(box.width > 0, `${selector} cannot be seen`);
    return box;
  }

  mouse(type, { x, y }) {
    return this.send("Input.dispatchMouseEvent", { type, x, y, button: "left", buttons: type === "mouseReleased" ? 0 : 1, clickCount: 1 });
  }

  async click(selector) {
    const at = await this.middle(selector);
    await this.mouse("mousePressed", at);
    await this.mouse("mouseReleased", at);
  }

  async drag(from, to) {
    await this.mouse("mousePressed", from);
    for (let i = 1; i <= 8; i++) {
      await this.mouse("mouseMoved", { x: from.x + ((to.x - from.x) * i) / 8, y: from.y + ((to.y - from.y) * i) / 8 });
    }
    await this.mouse("mouseReleased", to);
  }

  async fill(selector, text) {
    await this.click(selector);
    await this.run(`document.activeElement.select()`);
    await this.send(text === "" ? "Input.dispatchKeyEvent" : "Input.insertText",
      text === "" ? { type: "keyDown", key: "Delete", code: "Delete", windowsVirtualKeyCode: 46 } : { text });
  }

  async key(key, { ctrl = false, code = key, number = 0, text } = {}) {
    const one = { key, code, windowsVirtualKeyCode: number, modifiers: ctrl ? 2 : 0, ...(text && { text }) };
    await this.send("Input.dispatchKeyEvent", { type: text ? "keyDown" : "rawKeyDown", ...one });
    await this.send("Input.dispatchKeyEvent", { type: "keyUp", ...one });
  }

  /** Drops a file from elsewhere onto a place that appears while it is dragged. */
  async drop(file, selector) {
    const data = { items: [], files: [file], dragOperationsMask: 1 };
    const at = await this.run("({ x: innerWidth / 2, y: innerHeight / 2 })");
    await this.send("Input.dispatchDragEvent", { type: "dragEnter", ...at, data });
    await this.send("Input.dispatchDragEvent", { type: "dragOver", ...at, data });
    const target = selector ? await this.middle(selector) : at;
    const { x, y } = target;
    await this.send("Input.dispatchDragEvent", { type: "dragOver", x, y, data });
    await this.screenshot(`dropping`);
    await this.send("Input.dispatchDragEvent", { type: "drop", x, y, data });
  }

  async screenshot(name, whole = false) {
    const { data } = await this.send("Page.captureScreenshot", { format: "png", captureBeyondViewport: whole });
    writeFileSync(join(shots, `${name}.png`), Buffer.from(data, "base64"));
  }

  /** Roles of controls that a screen reader would read without a name. */
  async nameless() {
    const { nodes } = await this.send("Accessibility.getFullAXTree");
    const controls = new Set(["button", "textbox", "combobox", "spinbutton", "slider", "radio", "link", "image", "checkbox"]);
    return nodes.filter((node) => !node.ignored && controls.has(node.role?.value) && !node.name?.value)
      .map((node) => `${node.role.value} ${node.properties?.map((p) => p.name)}`);
  }
}

let page;
const state = (expression) => page.run(`(() => { const $ = (id) => document.getElementById(id); return ${expression}; })()`);
const tiles = () => state(`document.querySelectorAll("#gallery .tile").length`);
const isMade = () => state(`!$("stage").hidden && $("making").hidden && $("shown").naturalWidth > 0`);
const step = (what) => process.stdout.write(`${what}\n`);

/** Texts in a PNG by their keywords. */
function texts(bytes) {
  const found = {};
  for (let at = 8; at < bytes.length;) {
    const length = bytes.readUInt32BE(at);
    const [kind, data] = [bytes.toString("latin1", at + 4, at + 8), bytes.subarray(at + 8, at + 8 + length)];
    if (kind === "tEXt") found[data.toString("latin1", 0, data.indexOf(0))] = data.toString("latin1", data.indexOf(0) + 1);
    at += length + 12;
  }
  return found;
}

async function generate(prompt, { steps, seed, pictures = 1 }) {
  await page.fill("#prompt", prompt);
  await page.fill("#steps", String(steps));
  await page.fill("#seed", String(seed));
  await page.fill("#pictures", String(pictures));
  await page.key("Enter", { ctrl: true, number: 13 });
}

async function check(base) {
  step("a first visit");
  await page.size(1280, 900);
  await page.theme("light");
  await page.visit(base);
  await until("the model is shown", () => state(`$("server").textContent.includes(" on ")`));
  assert.ok(await state(`document.querySelectorAll("[name=ratio]").length`) === 10);
  assert.deepEqual(await page.nameless(), []);
  await page.screenshot("1-empty-light");
  await page.theme("dark");
  await page.screenshot("1-empty-dark");

  step("generate, and watch");
  await generate("a lighthouse on a cliff at sunset", { steps: 60, seed: 7, pictures: 2 });
  await until("a step is shown", () => state(`/^Step \\d+ of 60/.test($("step").textContent)`));
  const seen = new Set();
  let previews = 0;
  await until("both pictures are made", async () => {
    seen.add(await state(`$("step").textContent`));
    if (!previews && await state(`$("shown").src.startsWith("data:image/jpeg") && !$("shown").hidden`)) {
      previews += 1;
      await page.screenshot("2-making-dark");
    }
    return isMade();
  });
  assert.ok(seen.size > 3, `progress was ${[...seen]}`);
  assert.ok(previews, "no preview was shown");
  assert.equal(await tiles(), 2);
  assert.match(await state(`$("facts").textContent`), /Seed8/);
  await page.screenshot("3-done-dark");
  await page.theme("light");
  await page.screenshot("3-done-light");

  step("cancel");
  await generate("something that nobody waits for", { steps: 150, seed: 1, pictures: 8 });
  await until("it runs", () => state(`/^Step/.test($("step").textContent)`));
  await page.key("Escape", { number: 27 });
  await until("its tiles are gone", async () => await tiles() === 2, 10_000);
  assert.equal(await state(`$("toast").textContent`), "Cancelled");
  await until("the server is idle", async () => (await (await fetch(`${base}health`)).json()).queue.running === 0, 10_000);

  step("walk through the gallery by keyboard, download");
  await page.click("#gallery .tile");
  await page.key("ArrowRight", { number: 39 });
  assert.equal(await state(`[...document.querySelectorAll("#gallery .tile")].indexOf(document.activeElement)`), 1);
  const seed = Number(await state(`$("save").download.match(/\\d+/)[0]`));
  await page.send("Browser.setDownloadBehavior", { behavior: "allow", downloadPath: folder });
  await page.key("d", { number: 68, text: "d" });
  const saved = join(folder, `aquatint-${seed}.png`);
  await until("the file is saved", () => existsSync(saved) && !readdirSync(folder).some((name) => name.endsWith(".crdownload")));
  const recipe = JSON.parse(texts(readFileSync(saved)).aquatint);
  assert.deepEqual([recipe.seed, recipe.prompt, recipe.num_inference_steps], [seed, "a lighthouse on a cliff at sunset", 60]);

  step("copy as curl, and run it");
  await page.send("Browser.grantPermissions", { permissions: ["clipboardReadWrite", "clipboardSanitizedWrite"], origin: base.slice(0, -1) });
  await page.click("#curl");
  await until("it is copied", () => state(`$("toast").textContent === "Copied as curl"`));
  const command = await page.run("navigator.clipboard.readText()");
  writeFileSync(join(folder, "copied.sh"), command);
  execFileSync("bash", ["-e", "copied.sh"], { cwd: folder });
  const made = readdirSync(folder).find((name) => /^aquatint-[0-9a-f]{32}\.png$/.test(name));
  assert.deepEqual(readFileSync(join(folder, made)), readFileSync(saved), "the command makes the same picture");

  step("refine with a mask");
  await page.click("#repaint");
  await until("the mask is open", () => state(`$("painter").open && $("mask").width > 0`));
  const easel = await page.middle("#mask");
  const at = (dx, dy) => ({ x: easel.x + dx * easel.width, y: easel.y + dy * easel.height });
  for (const dy of [-0.2, -0.1, 0]) await page.drag(at(-0.3, dy), at(0, dy));
  await page.key("ArrowRight", { number: 39 });
  await page.key(" ", { code: "Space", number: 32, text: " " });
  await page.screenshot("4-mask-light");
  assert.deepEqual(await page.nameless(), []);
  await page.click("#painter button[value=done]");
  await until("the start picture is set", () => state(`!$("started").hidden && $("paint").textContent === "Edit mask"`));
  assert.equal(await state(`$("go").textContent.trim().split(" ")[0]`), "Refine");
  await page.screenshot("5-start-light");
  await page.run(`document.getElementById("strength").value = 1; document.getElementById("strength").dispatchEvent(new Event("input", { bubbles: true }))`);
  for (const seed of [3, 4]) {
    await generate("a red door", { steps: 6, seed });
    await until("it is there", async () => await tiles() === seed);
    await until("it is made", isMade);
  }
  const job = await page.run(`JSON.parse(sessionStorage.getItem("aquatint-jobs")).pop().id`);
  const [recipe4] = (await (await fetch(`${base}jobs/${job}/result`)).json()).parameters;
  assert.deepEqual([recipe4.mode, recipe4.strength, recipe4.seed], ["inpaint", 1, 4]);
  // Another seed changes what is painted over, and the rest only as far as the decoder smears it.
  const change = await page.run(`(async () => {
    const pixels = async (image) => {
      const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
      const context = canvas.getContext("2d");
      context.drawImage(image, 0, 0);
      return context.getImageData(0, 0, canvas.width, canvas.height);
    };
    const [one, other] = await Promise.all([...document.querySelectorAll("#gallery .tile img")].slice(0, 2).map(pixels));
    const differs = (x0, x1, y0, y1) => {
      let [sum, count] = [0, 0];
      for (let y = Math.floor(y0 * one.height); y < y1 * one.height; y++) {
        for (let x = Math.floor(x0 * one.width); x < x1 * one.width; x++, count += 3) {
          const at = (y * one.width + x) * 4;
          for (let c = at; c < at + 3; c++) sum += Math.abs(one.data[c] - other.data[c]);
        }
      }
      return sum / count;
    };
    return { painted: differs(0.25, 0.45, 0.32, 0.48), kept: differs(0.75, 1, 0.75, 1) };
  })()`);
  step(`  changed by ${change.painted.toFixed(1)} of 255 where painted, ${change.kept.toFixed(1)} elsewhere`);
  assert.ok(change.painted > 1.5 * change.kept);
  await page.screenshot("6-refined-light");
  await page.click("#unstart");

  step("restore from a PNG");
  for (const id of ["prompt", "negative", "steps", "seed"]) await page.run(`document.getElementById("${id}").value = ""`);
  await page.drop(saved, "[data-drop=restore]");
  await until("the prompt is back", () => state(`$("prompt").value === "a lighthouse on a cliff at sunset"`));
  assert.deepEqual(await state(`[$("steps").value, $("seed").value, document.querySelector("[name=ratio]:checked").value]`), ["60", String(seed), "1:1"]);
  await page.drop(saved, "[data-drop=start]");
  await until("it can be started from", () => state(`!$("started").hidden`));
  await page.click("#unstart");

  step("what is refused is said");
  await page.run(`document.getElementById("scheduler").value = "no such sampler"`);
  await page.key("Enter", { ctrl: true, number: 13 });
  await until("the error is shown", () => state(`/scheduler/.test($("error").textContent)`));
  page.complaints = page.complaints.filter((text) => !text.includes("422"));
  await page.run(`document.getElementById("scheduler").value = ""`);

  step("a reload keeps the session");
  await page.visit(base);
  await until("the pictures are back", async () => await tiles() === 4 && isMade());

  step("a phone");
  await page.size(390, 844, true);
  await page.theme("light");
  await page.visit(base);
  await until("the pictures are back", async () => await tiles() === 4 && isMade());
  const wide = await state(`document.documentElement.scrollWidth > innerWidth ? [...document.querySelectorAll("body *")]
    .filter((e) => e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.id || e.className || e.tagName) : []`);
  assert.deepEqual(wide, [], "wider than the phone");
  await page.run("scrollTo(0, 0)");
  await page.screenshot("7-phone-form-light");
  await page.run(`document.getElementById("results").scrollIntoView()`);
  await page.screenshot("7-phone-results-light");
  await page.theme("dark");
  await page.screenshot("7-phone-results-dark");
  await page.run("scrollTo(0, 0)");
  await page.screenshot("7-phone-form-dark");
  const small = await state(`[...document.querySelectorAll("button, .button, select, .chips label, .segments label")]
    .filter((e) => e.checkVisibility() && (e.getBoundingClientRect().height < 24)).map((e) => e.id || e.textContent)`);
  assert.deepEqual(small, [], "too small for a thumb");
  await page.click("#repaint");
  await until("the mask is open", () => state(`$("painter").open`));
  await page.screenshot("8-phone-mask-dark");
  await page.key("Escape", { number: 27 });

  await page.click("#help");
  await page.screenshot("8-phone-keys-dark");
  await page.key("Escape", { number: 27 });

  step("the API's description");
  await page.size(1280, 900);
  await page.theme("light");
  for (const name of ["docs", "redoc"]) {
    await page.visit(`${base}${name}`);
    await until("it is drawn", () => state(`document.querySelectorAll("article").length > 5`));
    assert.deepEqual(await page.nameless(), []);
    await page.screenshot(`9-${name}-light`);
  }

  const outside = page.requests.filter((url) => !/^(blob|data):/.test(url) && !url.startsWith(base));
  assert.deepEqual(outside, [], "requests to elsewhere");
  assert.deepEqual(page.complaints, [], "errors in the console");
}

mkdirSync(shots, { recursive: true });
try {
  const base = await startServer();
  page = await Page.open(await startBrowser());
  await check(base);
  step(`all well; screenshots are in ${shots}`);
} finally {
  for (const child of children) child.kill();
  await pause(300);
  rmSync(folder, { recursive: true, force: true, maxRetries: 5 });
}
process.exit();
