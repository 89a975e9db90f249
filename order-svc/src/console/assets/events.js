// The event stream: reads it, comes back when it breaks, and misses nothing. The browser's own
// EventSource gives up on a 503 and hides the heartbeats; so it is read by hand.

const SHORTEST_MS = 1_000; // a stream that ends in order sooner is no better than a broken one
const SILENCE_MS = 13_000; // two heartbeats and some: the connection is dead
const FIRST_WAIT_MS = 300;
const LONGEST_WAIT_MS = 5_000;

/** on(name, data, former) for every event; `former` is how the stream before this one ended: "in order", "broken",
 * or null if there was none. state("live" | "connecting" | "lost", text) for people. */
export function watch(on, state) {
  let last = null;
  let wait = FIRST_WAIT_MS;
  let ended = null;

  /** Reads one stream; true if it ended in order, as every stream does after some minutes. */
  async function connect() {
    const quit = new AbortController();
    const former = ended;
    let since = null;
    let silence = setTimeout(() => quit.abort(), SILENCE_MS);
    try {
      const headers = last ? { "Last-Event-ID": last } : {};
      const answer = await fetch("/events", { headers, signal: quit.signal, cache: "no-store" });
      if (!answer.ok) throw new Error(`answered ${answer.status}`);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) {
          if (since !== null) ended = "in order";
          return since !== null && performance.now() - since >= SHORTEST_MS;
        }
        since ??= performance.now();
        ended = "broken"; // until it is known to have ended in order
        clearTimeout(silence);
        silence = setTimeout(() => quit.abort(), SILENCE_MS);
        state("live", "live");
        wait = FIRST_WAIT_MS;
        const frames = (rest + value).split("\n\n");
        rest = frames.pop();
        for (const frame of frames) take(frame, former);
      }
    } finally {
      clearTimeout(silence);
      quit.abort();
    }
  }

  function take(frame, former) {
    let name = "message", data = null, id = null;
    for (const line of frame.split("\n")) {
      if (line.startsWith("event: ")) name = line.slice(7);
      else if (line.startsWith("data: ")) data = line.slice(6);
      else if (line.startsWith("id: ")) id = line.slice(4);
    }
    if (data === null) return;
    last = id ?? last;
    try {
      on(name, JSON.parse(data), former);
    } catch (error) {
      // One event that cannot be shown must not hold up those behind it.
      console.error("event stream:", name, error);
    }
  }

  (async () => {
    for (;;) {
      try {
        // Nothing is lost yet: only if coming back at once fails is there anything to say.
        if (await connect()) continue;
      } catch (error) {
        console.info("event stream:", error.message);
      }
      state("lost", "disconnected, trying again");
      await new Promise((resolve) => setTimeout(resolve, wait));
      wait = Math.min(wait * 1.7, LONGEST_WAIT_MS);
    }
  })();
}
