"use strict";
// npm `toxiproxy-node-client` against the server on 127.0.0.1:8474: everything it offers, with real connections.
const assert = require("node:assert");
const net = require("node:net");
const { Toxiproxy } = require("toxiproxy-node-client");

const listening = (server) => new Promise((done) => server.listen(0, "127.0.0.1", () => done(server.address().port)));

const ask = (port) =>
  new Promise((done, failed) => {
    const begin = performance.now();
    const client = net.connect(port, "127.0.0.1", () => client.write("hello"));
    client.on("data", (data) => {
      assert.strictEqual(data.toString(), "hello");
      client.destroy();
      done(performance.now() - begin);
    });
    client.on("error", failed);
  });

async function main() {
  const echo = net.createServer((client) => client.on("error", () => {}).pipe(client));
  const upstream = `127.0.0.1:${await listening(echo)}`;
  const toxiproxy = new Toxiproxy("http://127.0.0.1:8474");

  assert.strictEqual(await toxiproxy.getVersion(), '{"version": "2.12.0"}\n');
  const proxy = await toxiproxy.createProxy({ name: "echo", listen: "127.0.0.1:0", upstream });
  const port = Number(proxy.listen.split(":")[1]);
  assert.ok(port > 0 && proxy.enabled);
  assert.strictEqual((await toxiproxy.get("echo")).upstream, upstream);
  assert.deepStrictEqual(Object.keys(await toxiproxy.getAll()), ["echo"]);
  await assert.rejects(toxiproxy.createProxy({ name: "echo", listen: "127.0.0.1:0", upstream }), /status code 409/);
  await assert.rejects(toxiproxy.get("nope"), /status code 404/);

  const toxic = await proxy.addToxic({ type: "latency", attributes: { latency: 300, jitter: 0 } });
  assert.strictEqual(toxic.name, "latency_downstream");
  assert.ok((await ask(port)) >= 299);
  const changed = await toxic.update({ attributes: { latency: 1 }, toxicity: 0.5 });
  assert.deepStrictEqual([changed.attributes, changed.toxicity], [{ latency: 1, jitter: 0 }, 0.5]);
  assert.deepStrictEqual((await proxy.getToxic("latency_downstream")).toJson(), changed.toJson());
  await assert.rejects(proxy.addToxic({ type: "down", attributes: {} }), /status code 400/);
  for (const body of [
    { type: "bandwidth", attributes: { rate: 1000 } },
    { type: "slow_close", attributes: { delay: 1 } },
    { type: "timeout", attributes: { timeout: 100 } },
    { type: "reset_peer", attributes: { timeout: 0 } },
    { type: "slicer", attributes: { average_size: 10, size_variation: 2, delay: 10 } },
    { type: "limit_data", attributes: { bytes: 10 } },
  ]) {
    const added = await proxy.addToxic({ name: body.type, stream: "upstream", toxicity: 1, ...body });
    assert.deepStrictEqual(added.attributes, body.attributes);
    await added.remove();
  }
  await toxic.remove();
  await ask(port);

  assert.strictEqual((await proxy.update({ enabled: false })).enabled, false);
  await assert.rejects(ask(port), /ECONNREFUSED/);
  await toxiproxy.reset();
  assert.ok((await toxiproxy.get("echo")).enabled);
  await ask(port);

  const made = await toxiproxy.populate([{ name: "two", listen: "127.0.0.1:0", upstream, enabled: true }]);
  assert.deepStrictEqual(Object.keys(made), ["two"]);
  for (const each of Object.values(await toxiproxy.getAll())) await each.remove();
  assert.deepStrictEqual(Object.keys(await toxiproxy.getAll()), []);
  echo.close();
  console.log("toxiproxy-node-client: every call holds");
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
