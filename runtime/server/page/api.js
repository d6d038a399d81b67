// What the server is asked, and how its replies are read. Knows no page.

/** A refusal of the server, with the message that it gave. */
export class Refusal extends Error {
  constructor(status, message, retryAfterS) {
    super(message);
    Object.assign(this, { status, retryAfterS });
  }
}

/** The server that this page came from. */
export class Server {
  #key = "";

  /** Send this API key from now on; it is kept as long as the page is open. */
  useKey(key) {
    this.#key = key;
  }

  /** The name of the model. */
  async modelName() {
    const reply = await this.#send("/v1/models", { method: "GET" });
    return (await reply.json()).data[0].id;
  }

  /** Where a question points. picture: a Blob. roi: what differs from the model's own policy. */
  async look(picture, question, { roi = {}, signal } = {}) {
    const body = { image: await dataUrl(picture), question, map: "float32", roi };
    return (await this.#post("/v1/look", body, signal)).json();
  }

  /** An answer. piece: called with every piece of text as it comes. Returns {text, finish, extras, usage}. */
  async answer(picture, question, { roi = {}, signal, piece = () => {} } = {}) {
    const content = [
      { type: "image_url", image_url: { url: await dataUrl(picture) } },
      { type: "text", text: question },
    ];
    const body = {
      messages: [{ role: "user", content }],
      roi,
      stream: true,
      stream_options: { include_usage: true },
    };
    const reply = await this.#post("/v1/chat/completions", body, signal);
    const found = { text: "", finish: null, extras: null, usage: null };
    const isStream = (reply.headers.get("content-type") ?? "").startsWith("text/event-stream");
    for await (const chunk of isStream ? events(reply.body) : [await reply.json()]) {
      if (chunk.error) throw new Refusal(500, chunk.error.message);
      const choice = chunk.choices?.[0];
      const text = (choice?.delta ?? choice?.message)?.content ?? "";
      if (text) {
        found.text += text;
        piece(text);
      }
      found.finish = choice?.finish_reason ?? found.finish;
      found.extras = chunk.sdrpn ?? found.extras;
      found.usage = chunk.usage ?? found.usage;
    }
    return found;
  }

  async #post(path, body, signal) {
    const headers = { "Content-Type": "application/json" };
    return this.#send(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  }

  async #send(path, options) {
    const headers = { ...options.headers };
    if (this.#key) headers.Authorization = `Bearer ${this.#key}`;
    let reply;
    try {
      reply = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refusal(0, "the server does not answer; is it running?");
    }
    if (reply.ok) return reply;
    const said = await reply.json().catch(() => null);
    const message = said?.error?.message ?? `the server answered ${reply.status} ${reply.statusText}`;
    throw new Refusal(reply.status, message, Number(reply.headers.get("retry-after")) || null);
  }
}

/** The JSON of every event of a stream of server-sent events, until [DONE]. */
export async function* events(body) {
  let rest = "";
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        const data = lines.map((line) => line.slice(5).trimStart()).join("\n");
        if (data === "[DONE]") return;
        if (data) yield JSON.parse(data);
      }
    }
  } finally {
    await reader.cancel();
  }
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Refusal(0, "the picture cannot be read; choose it again"));
    reader.readAsDataURL(blob);
  });
}
