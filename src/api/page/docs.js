// The API's description, from /openapi.json. At /docs requests can be tried, /redoc is for reading.

const canTry = !location.pathname.endsWith("redoc");
const api = await (await fetch("openapi.json")).json();
document.getElementById("version").textContent = `API ${api.info.version}, OpenAPI ${api.openapi}`;

/** An element with attributes and children. */
function element(name, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Text with `code` in it. */
const prose = (text = "") => text.split("`").map((part, i) => (i % 2 ? element("code", { textContent: part }) : part));

const resolve = (schema) => (schema?.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema);

function kindOf(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(kindOf).filter((kind) => kind !== "null").join(" or ");
  const kinds = [schema.type ?? "any"].flat().filter((kind) => kind !== "null");
  const range = schema.minimum !== undefined || schema.maximum !== undefined
    ? ` ${schema.minimum ?? ""} to ${schema.maximum ?? ""}` : "";
  const items = schema.items ? ` of ${kindOf(schema.items)}` : "";
  const media = schema.contentEncoding ? ` (${schema.contentEncoding})` : schema.format ? ` (${schema.format})` : "";
  return kinds.join(" or ") + items + range + media;
}

function row(name, schema, about, required) {
  const values = schema.enum?.filter((value) => value !== null).join(", ");
  return element("tr", {},
    element("td", {}, element("code", { textContent: name }), required ? element("small", { textContent: "required" }) : null),
    element("td", {}, ...prose(about), element("small", { textContent: values ? `one of ${values}` : kindOf(schema) })));
}

/** A schema as a table; what it refers to follows in its own. */
function table(schema, seen = new Set()) {
  const whole = resolve(schema);
  if (!whole?.properties) return [element("p", {}, kindOf(schema))];
  const rows = Object.entries(whole.properties)
    .map(([name, property]) => row(name, property, property.description, whole.required?.includes(name)));
  const inner = Object.entries(whole.properties).flatMap(([name, property]) => {
    const target = [property, property.items, ...(property.anyOf ?? [])].find((one) => one?.$ref || one?.properties);
    if (!target || seen.has(target.$ref ?? name)) return [];
    seen.add(target.$ref ?? name);
    return [element("h3", { textContent: name }), ...table(target, seen)];
  });
  return [element("table", {}, ...rows), ...inner];
}

function section(title, ...children) {
  return element("div", {}, element("h3", { textContent: title }), ...children);
}

function describe(path, method, operation) {
  const parts = [];
  if (operation.description) parts.push(element("p", {}, ...prose(operation.description)));
  if (operation.parameters.length) {
    parts.push(section("Parameters", element("table", {}, ...operation.parameters
      .map((one) => row(one.name, one.schema, `In the ${one.in}. ${one.description}`, one.required)))));
  }
  for (const [kind, { schema }] of Object.entries(operation.requestBody?.content ?? {})) {
    parts.push(section(`Body: ${kind}`, ...table(schema)));
  }
  const answers = Object.entries(operation.responses).map(([status, { description, content }]) =>
    element("tr", {}, element("td", {}, element("code", { textContent: status })), element("td", {}, ...prose(description),
      element("small", { textContent: Object.entries(content ?? {}).map(([kind, { schema }]) => `${kind}: ${kindOf(schema)}`).join("; ") }))));
  parts.push(section("Answers", element("table", {}, ...answers)));
  if (canTry) parts.push(trial(path, method, operation));
  return element("div", { className: "inside" }, ...parts);
}

function example(schema) {
  const whole = resolve(schema);
  const value = (name, property) => (property.enum?.[0] ?? { prompt: "a lighthouse on a cliff at sunset" }[name]
    ?? { string: "", array: [], object: {}, integer: 0, number: 0, boolean: false }[[property.type].flat()[0]]);
  return Object.fromEntries((whole.required ?? []).map((name) => [name, value(name, whole.properties[name])]));
}

/** Fields for the parameters, the body, and a button. */
function trial(path, method, operation) {
  const fields = operation.parameters.map((one) => [one, element("input", { ariaLabel: one.name, placeholder: one.name })]);
  const schema = operation.requestBody?.content["application/json"]?.schema;
  const body = schema
    ? element("textarea", { rows: 6, ariaLabel: "Body", value: JSON.stringify(example(schema), null, 2) }) : null;
  const button = element("button", { type: "button", className: "primary", textContent: "Send" });
  const answer = element("div", { ariaLive: "polite" });
  button.addEventListener("click", async () => {
    const key = sessionStorage.getItem("aquatint-key");
    const headers = { ...(body && { "content-type": "application/json" }), ...(key && { authorization: `Bearer ${key}` }) };
    const query = new URLSearchParams();
    let filled = path.slice(1);
    for (const [one, input] of fields) {
      if (one.in === "path") filled = filled.replace(`{${one.name}}`, encodeURIComponent(input.value));
      else if (!input.value) continue;
      else if (one.in === "query") query.set(one.name, input.value);
      else headers[one.name] = input.value;
    }
    answer.replaceChildren("…");
    try {
      const response = await fetch(`./${filled}${query.size ? `?${query}` : ""}`, { method: method.toUpperCase(), headers, body: body?.value });
      const kind = response.headers.get("content-type") ?? "";
      const shown = kind.startsWith("image/p") || kind.startsWith("image/j") || kind.startsWith("image/w")
        ? element("img", { alt: "The answer", src: URL.createObjectURL(await response.blob()) })
        : element("pre", { textContent: pretty(await response.text()) });
      answer.replaceChildren(element("p", { textContent: `${response.status} ${kind}` }), shown);
    } catch (error) {
      answer.replaceChildren(`No answer: ${error.message}`);
    }
  });
  return element("div", { className: "try" }, ...fields.map(([, input]) => input), body, button, answer);
}

function pretty(text) {
  const short = (key, value) => (typeof value === "string" && value.length > 400 ? `${value.slice(0, 80)} … (${value.length} characters)` : value);
  try {
    return JSON.stringify(JSON.parse(text), short, 2);
  } catch {
    return text.slice(0, 20000);
  }
}

const contents = document.getElementById("contents");
const main = document.getElementById("operations");
main.replaceChildren();
for (const { name, description } of api.tags) {
  const all = Object.entries(api.paths).flatMap(([path, methods]) => Object.entries(methods)
    .filter(([, operation]) => operation.tags.includes(name)).map(([method, operation]) => [path, method, operation]));
  if (!all.length) continue;
  contents.append(element("strong", { textContent: name }));
  const part = element("section", {}, element("h2", { textContent: name }), element("p", { textContent: description }));
  for (const [path, method, operation] of all) {
    const id = operation.operationId;
    contents.append(element("a", { href: `#${id}`, textContent: operation.summary }));
    const summary = element("summary", {}, element("b", { className: `method ${method}`, textContent: method }),
      element("code", { textContent: path }), element("span", { textContent: operation.summary }));
    const details = element("details", { open: !canTry || location.hash === `#${id}` }, summary);
    // Filled when opened: the page is long.
    const fill = () => { if (details.open && details.children.length === 1) details.append(describe(path, method, operation)); };
    details.addEventListener("toggle", fill);
    fill();
    part.append(element("article", { id }, details));
  }
  main.append(part);
}
addEventListener("hashchange", () => document.querySelector(`${location.hash} details`)?.setAttribute("open", ""));
document.getElementById(location.hash.slice(1))?.scrollIntoView();
