// The server's side of the page: submit, watch, cancel, fetch.

const KEY = "aquatint-key";
const ENDS = new Set(["done", "failed", "cancelled"]);
const RECONNECTS = 20;

/** A request; throws an error with the server's own words. */
async function call(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401 && await askForKey()) return call(path, options);
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  const reply = await response.json().catch(() => ({}));
  const detail = reply.detail ?? reply.error?.message ?? reply.error ?? `the server answered ${response.status}`;
  const wait = response.headers.get("retry-after");
  const text = typeof detail === "string" ? detail : JSON.stringify(detail);
  const error = new Error(wait && response.status !== 409 ? `${text} Try again in ${wait} s.` : text);
  return Object.assign(error, { status: response.status });
}

/** Asks for the API key; several requests that are refused at once ask once. */
let asking = null;
function askForKey() {
  asking ??= new Promise((answer) => {
    const dialog = document.getElementById("asking");
    const input = document.getElementById("key");
    dialog.addEventListener("close", () => {
      asking = null;
      const given = dialog.returnValue === "done" && input.value !== "";
      if (given) sessionStorage.setItem(KEY, input.value);
      answer(given);
    }, { once: true });
    dialog.returnValue = "";
    dialog.showModal();
  });
  return asking;
}

export const health = async () => (await call("health")).json();

export async function submit(body) {
  const options = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  return (await call("jobs", options)).json();
}

export const status = async (id) => (await call(`jobs/${id}`)).json();
/** Ends a job; the server forgets one that has ended. */
export const cancel = async (id) => (await call(`jobs/${id}`, { method: "DELETE" })).json();
export const picture = async (path) => (await call(path.replace(/^\//, ""))).blob();

/** The job's events to its end. A broken connection is taken up again after the last event that was heard. */
export async function* events(id) {
  let last = null;
  for (let failed = 0; failed < RECONNECTS; failed++) {
    try {
      const response = await call(`jobs/${id}/events`, { headers: last ? { "last-event-id": last } : {} });
      if (response.status === 204) return;
      for await (const event of parse(response.body)) {
        [last, failed] = [event.id, 0];
        yield event;
        if (ENDS.has(event.name)) return;
      }
    } catch (error) {
      if (error.status) throw error;
    }
    await new Promise((resume) => setTimeout(resume, Math.min(500 * (failed + 1), 5000)));
  }
  throw new Error("The connection to the server is lost.");
}

// Server-sent events by hand: EventSource can send no key.
async function* parse(body) {
  let text = "";
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (text + value).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").filter((line) => /^[a-z]/.test(line))
        .map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trimStart()]));
      if (fields.data) yield { id: fields.id, name: fields.event, data: JSON.parse(fields.data) };
    }
  }
}
