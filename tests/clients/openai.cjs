"use strict";
// OpenAI's JavaScript package.

const assert = require("node:assert");
const { OpenAI, toFile } = require("openai");
const sharp = require("sharp");

const url = process.argv[2];
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const picture = () => sharp({ create: { width: 64, height: 64, channels: 3, background: "#c86432" } }).png().toBuffer();
const size = async (item) => {
  const { width, height } = await sharp(Buffer.from(item.b64_json, "base64")).metadata();
  return [width, height];
};

(async () => {
  const models = await client.models.list();
  assert.deepStrictEqual(models.data.map((model) => model.id), ["builtin"]);

  const reply = await client.images.generate({ prompt: "a red apple", n: 2, size: "64x72", quality: "low", steps: 2 });
  for (const item of reply.data) assert.deepStrictEqual(await size(item), [64, 72]);

  const kinds = [];
  const stream = await client.images.generate({ prompt: "a red apple", size: "64x64", stream: true, partial_images: 1, steps: 4 });
  for await (const event of stream) kinds.push(event.type);
  assert.strictEqual(kinds.at(-1), "image_generation.completed");

  const file = async () => toFile(await picture(), "image.png", { type: "image/png" });
  const edited = await client.images.edit({ image: [await file(), await file()], prompt: "a hat", steps: 2 });
  assert.strictEqual(edited.data.length, 2);
  const varied = await client.images.createVariation({ image: await file(), response_format: "url" });
  const fetched = await fetch(varied.data[0].url);
  assert.strictEqual(fetched.headers.get("content-type"), "image/png");

  await assert.rejects(client.images.generate({ prompt: "a", size: "1x1" }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError, error);
    assert.strictEqual(error.param, "size");
    return true;
  });
})();
