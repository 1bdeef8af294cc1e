// What walk.py does, with the stock client for Node. Prints what it saw as JSON.
//
// `OPENAI_BASE_URL=… OPENAI_API_KEY=… node walk.mjs rows.jsonl MODEL`

import fs from "node:fs";
import OpenAI from "openai";

const [rows, model] = process.argv.slice(2);
const client = new OpenAI();
const metadata = { walk: "node", empty: "" };

async function until(id, ...statuses) {
  for (let tries = 0; tries < 1200; tries++) {
    const job = await client.fineTuning.jobs.retrieve(id);
    if (statuses.includes(job.status)) return job;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error(`${id} is not ${statuses} after two minutes`);
}

async function all(pages) {
  const found = [];
  for await (const one of pages) found.push(one);
  return found;
}

const uploaded = await client.files.create({ file: fs.createReadStream(rows), purpose: "fine-tune" });
const file = await client.files.waitForProcessing(uploaded.id);
const created = await client.fineTuning.jobs.create({
  model,
  training_file: file.id,
  validation_file: null,
  suffix: "Walk Through",
  seed: 7,
  metadata,
  method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 2, batch_size: 8 } } },
  tuning: { type: "lora", r: 4 },
});
const job = await until(created.id, "succeeded", "failed", "cancelled");
const events = await all(client.fineTuning.jobs.listEvents(job.id, { limit: 5 }));
const checkpoints = await all(client.fineTuning.jobs.checkpoints.list(job.id, { limit: 1 }));
const table = await (await client.files.content(job.result_files[0])).text();
const models = (await all(client.models.list())).map((one) => one.id);

const second = await client.fineTuning.jobs.create({
  model: checkpoints.at(-1).fine_tuned_model_checkpoint,
  training_file: file.id,
  hyperparameters: { n_epochs: 1, batch_size: "auto" },
});
await client.fineTuning.jobs.pause(second.id);
const paused = await until(second.id, "paused");
const resumed = await client.fineTuning.jobs.resume(second.id);
await client.fineTuning.jobs.cancel(second.id);
const cancelled = await until(second.id, "cancelled", "succeeded", "failed");

const listed = (await all(client.fineTuning.jobs.list({ metadata }))).map((one) => one.id);
const everything = (await all(client.fineTuning.jobs.list({ limit: 1 }))).map((one) => one.id);
const deleted = await client.models.delete(job.fine_tuned_model);
let missing, refused;
try {
  await client.models.retrieve(job.fine_tuned_model);
} catch (error) {
  if (!(error instanceof OpenAI.NotFoundError)) throw error;
  missing = { code: error.code, type: error.type, request_id: Boolean(error.requestID) };
}
try {
  await client.fineTuning.jobs.create({ model, training_file: "file-none", tunning: {} });
} catch (error) {
  if (!(error instanceof OpenAI.BadRequestError)) throw error;
  refused = { param: error.param, code: error.code, helps: error.message.includes("tuning") };
}

console.log(
  JSON.stringify({
    file: file.status,
    status: job.status,
    error: job.error && job.error.message,
    own: job.tuning.r,
    epochs: job.hyperparameters.n_epochs,
    first: events.at(-1).message,
    last: events[0].message,
    metrics: events.filter((event) => event.type === "metrics").length,
    steps: checkpoints.map((checkpoint) => checkpoint.step_number),
    rows: table.split("\n")[0],
    lines: table.trimEnd().split("\n").length,
    known: [job.fine_tuned_model, model].every((id) => models.includes(id)),
    paused: paused.status,
    resumed: resumed.status,
    cancelled: cancelled.status,
    found: listed.length === 1 && listed[0] === job.id,
    paged: everything[0] === second.id && everything[1] === job.id,
    deleted: deleted.deleted,
    missing,
    refused,
  }),
);
