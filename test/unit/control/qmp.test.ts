// Rules: shapes and words of QMP as a real QEMU gives them (qemu-compat.md D); the socket is 0600, a stale one replaced, a live one refused.
import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { QmpClient } from '../../../control/qmp-client.ts';
import { QmpServer } from '../../../control/qmp-server.ts';
import { VmSession } from '../../../control/vm-session.ts';
import { ControlMachine, FakeDoor, outcome } from '../../fakes/control-machine.ts';

let dir: string;
let path: string;
let machine: ControlMachine;
let door: FakeDoor;
let vm: VmSession;
let server: QmpServer;
let quits: number;

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'ferry-qmp-'));
  path = join(dir, 'sock');
  machine = new ControlMachine();
  door = new FakeDoor();
  quits = 0;
  vm = new VmSession({
    name: 'g1',
    door,
    receiveHost: null,
    onQuit: () => quits++,
    onMigrated: () => {},
    onArrived: () => {},
    onReceiveFailed: () => {},
  });
  vm.adopt(machine.asMachine());
  server = await QmpServer.listen(vm, `unix:${path}`);
});

afterEach(async () => {
  await server.close();
  rmSync(dir, { recursive: true, force: true });
});

/** A raw client: lines come out as parsed objects. */
class Raw {
  readonly lines: Record<string, unknown>[] = [];
  readonly #socket: Socket;
  #text = '';
  constructor() {
    this.#socket = connect(path);
    this.#socket.on('data', (bytes) => {
      this.#text += bytes.toString();
      const parts = this.#text.split('\r\n');
      this.#text = parts.pop() ?? '';
      for (const part of parts) this.lines.push(JSON.parse(part) as Record<string, unknown>);
    });
  }
  async ask(text: string): Promise<Record<string, unknown>> {
    const at = this.lines.length;
    this.#socket.write(text);
    return this.at(at);
  }
  async at(index: number): Promise<Record<string, unknown>> {
    await expect.poll(() => this.lines.length, { timeout: 5000 }).toBeGreaterThan(index);
    return this.lines[index] ?? {};
  }
  close(): void {
    this.#socket.destroy();
  }
}

describe('negotiation', () => {
  it('greets, insists on qmp_capabilities once, and echoes ids', async () => {
    const raw = new Raw();
    const greeting = await raw.at(0);
    expect(greeting).toMatchObject({ QMP: { version: { qemu: { major: 7 } }, capabilities: [] } });
    expect(await raw.ask('{"execute":"query-status","id":[1]}')).toEqual({
      error: { class: 'CommandNotFound', desc: "Expecting capabilities negotiation with 'qmp_capabilities'" },
      id: [1],
    });
    expect(await raw.ask('{"execute":"qmp_capabilities","id":"x"}')).toEqual({ return: {}, id: 'x' });
    expect(await raw.ask('{"execute":"qmp_capabilities"}')).toMatchObject({
      error: { desc: 'Capabilities negotiation is already complete, command ignored' },
    });
    raw.close();
  });

  it('serves several clients at once: ferry status gets through while ferry migrate follows; each negotiates for itself', async () => {
    const first = new Raw();
    await first.at(0);
    expect(await first.ask('{"execute":"qmp_capabilities"}')).toEqual({ return: {} });
    const second = new Raw();
    expect(await second.at(0)).toHaveProperty('QMP');
    expect(await second.ask('{"execute":"query-status"}')).toHaveProperty('error');
    expect(await second.ask('{"execute":"qmp_capabilities"}')).toEqual({ return: {} });
    expect(await second.ask('{"execute":"query-status"}')).toHaveProperty('return');
    first.close();
    expect(await second.ask('{"execute":"query-status"}')).toHaveProperty('return');
    second.close();
  });
});

describe('bad requests', () => {
  it.each([
    ['[1]', 'GenericError', 'QMP input must be a JSON object'],
    ['{"execute":"stop","foo":1}', 'GenericError', "QMP input member 'foo' is unexpected"],
    ['{"execute":1}', 'GenericError', "QMP input member 'execute' must be a string"],
    ['{"execute":"stop","arguments":null}', 'GenericError', "QMP input member 'arguments' must be an object"],
    ['{"execute":"nope"}', 'CommandNotFound', 'The command nope has not been found'],
    ['{"execute":"constructor"}', 'CommandNotFound', 'The command constructor has not been found'],
    ['{"execute":"stop","arguments":{"x":1}}', 'GenericError', "Parameter 'x' is unexpected"],
    ['{"execute":"migrate"}', 'GenericError', "Parameter 'uri' is missing"],
    [
      '{"execute":"migrate","arguments":{"uri":"foo"}}',
      'GenericError',
      "Parameter 'uri' expects a valid migration protocol",
    ],
    [
      '{"execute":"migrate-incoming","arguments":{"uri":"tcp:0:1"}}',
      'GenericError',
      "'-incoming' was not specified on the command line",
    ],
    [
      '{"execute":"migrate-set-parameters","arguments":{"downtime-limit":2000001}}',
      'GenericError',
      "Parameter 'downtime_limit' expects an integer in the range of 0 to (2000 * 1000) ms",
    ],
    [
      '{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"bogus","state":true}]}}',
      'GenericError',
      "Parameter 'capability' does not accept value 'bogus'",
    ],
  ])('%s', async (request, errorClass, desc) => {
    const raw = new Raw();
    await raw.at(0);
    await raw.ask('{"execute":"qmp_capabilities"}');
    expect(await raw.ask(request)).toEqual({ error: { class: errorClass, desc } });
    raw.close();
  });
});

describe('run state', () => {
  it('stop, cont, reset, powerdown: events come before the return', async () => {
    const raw = new Raw();
    await raw.at(0);
    await raw.ask('{"execute":"qmp_capabilities"}');
    const names = async (command: string, count: number) => {
      const at = raw.lines.length;
      await raw.ask(`{"execute":"${command}"}`);
      await raw.at(at + count - 1);
      return raw.lines.slice(at, at + count).map((line) => line['event'] ?? 'return');
    };
    expect(await names('stop', 2)).toEqual(['STOP', 'return']);
    expect(await raw.ask('{"execute":"query-status"}')).toEqual({
      return: { status: 'paused', singlestep: false, running: false },
    });
    expect(await names('cont', 2)).toEqual(['RESUME', 'return']);
    expect(await names('cont', 1)).toEqual(['return']);
    expect(await names('system_reset', 2)).toEqual(['RESET', 'return']);
    expect(await names('system_powerdown', 2)).toEqual(['POWERDOWN', 'return']);
    expect(machine.calls).toEqual(['pause paused', 'start', 'reset host-qmp-system-reset', 'powerdown']);
    raw.close();
  });

  it('quit ends the machine and is answered', async () => {
    const client = await QmpClient.connect(path);
    expect(await client.execute('quit')).toEqual({});
    expect(quits).toBe(1);
    expect(machine.calls).toEqual(['end host-qmp-quit 0']);
    client.close();
  });
});

describe('migration', () => {
  it('reports active, completed, and refuses a second one meanwhile', async () => {
    const client = await QmpClient.connect(path);
    expect(await client.execute('query-migrate')).toEqual({});
    await client.execute('migrate', { uri: 'tcp:h:1' });
    await expect(client.execute('migrate', { uri: 'tcp:h:1' })).rejects.toThrow(
      "There's a migration process in progress",
    );
    door.change('active', 1);
    expect(await client.execute('query-migrate')).toMatchObject({
      status: 'active',
      'expected-downtime': 120,
      ram: { total: 1 << 28, remaining: 1 << 24, 'dirty-sync-count': 2, duplicate: 7, normal: 11 },
      vfio: { transferred: 4096 },
    });
    door.end(outcome('completed'));
    await expect
      .poll(async () => ((await client.execute('query-migrate')) as { status: string }).status)
      .toBe('completed');
    expect(await client.execute('query-migrate')).toMatchObject({ status: 'completed', downtime: 123 });
    client.close();
  });

  it('emits MIGRATION and MIGRATION_PASS only with the capability `events`', async () => {
    const client = await QmpClient.connect(path);
    const seen: string[] = [];
    client.onEvent((event) => seen.push(`${event.event} ${JSON.stringify(event.data)}`));
    await client.execute('migrate', { uri: 'tcp:h:1' });
    door.end(outcome('failed', 'the peer went away'));
    await expect
      .poll(async () => ((await client.execute('query-migrate')) as { status: string }).status)
      .toBe('failed');
    expect(seen).toEqual([]);
    await client.execute('migrate-set-capabilities', { capabilities: [{ capability: 'events', state: true }] });
    await client.execute('migrate', { uri: 'tcp:h:1' });
    door.change('active', null);
    door.change('active', 1);
    door.end(outcome('completed'));
    await expect.poll(() => seen.length).toBe(4);
    expect(seen).toEqual([
      'MIGRATION {"status":"setup"}',
      'MIGRATION {"status":"active"}',
      'MIGRATION_PASS {"pass":1}',
      'MIGRATION {"status":"completed"}',
    ]);
    client.close();
  });

  it('a command that is sent while another waits for its answer takes nothing from it: Ctrl-C during a query', async () => {
    const client = await QmpClient.connect(path);
    await client.execute('migrate', { uri: 'tcp:h:1' });
    const [before, cancelled, after] = await Promise.all(
      ['query-migrate', 'migrate_cancel', 'query-migrate'].map((command) => client.execute(command)),
    );
    expect(before).toMatchObject({ status: 'setup' });
    expect(cancelled).toEqual({});
    expect(after).toMatchObject({ status: 'cancelling' });
    const waiting = [client.execute('query-status'), client.execute('query-status')];
    client.close();
    for (const each of waiting) await expect(each).rejects.toThrow('the control socket was closed');
  });

  it('a peer that does not answer is told by query-migrate, not by the command', async () => {
    door.refuse = new Error("Failed to connect to '127.0.0.1:1': Connection refused");
    const client = await QmpClient.connect(path);
    expect(await client.execute('migrate', { uri: 'tcp:127.0.0.1:1' })).toEqual({});
    await expect
      .poll(() => client.execute('query-migrate'))
      .toEqual({
        status: 'failed',
        'error-desc': "Failed to connect to '127.0.0.1:1': Connection refused",
      });
    client.close();
  });

  it('a blocked machine does not start and says why', async () => {
    machine.blocker = 'edu0: the driver offers no migration';
    const client = await QmpClient.connect(path);
    await expect(client.execute('migrate', { uri: 'tcp:h:1' })).rejects.toThrow('edu0: the driver offers no migration');
    expect(await client.execute('query-migrate')).toEqual({
      'blocked-reasons': ['edu0: the driver offers no migration'],
    });
    client.close();
  });

  it('cancel: nothing when idle, refused after the hand-over, limits go to the running migration', async () => {
    const client = await QmpClient.connect(path);
    expect(await client.execute('migrate_cancel')).toEqual({});
    await client.execute('migrate', { uri: 'tcp:h:1' });
    await expect.poll(() => vm.outgoing.migration).not.toBeNull();
    await client.execute('migrate-set-parameters', { 'downtime-limit': 700, 'max-bandwidth': 5 });
    expect(door.limits).toEqual([{ downtimeLimitMs: 700, maxBandwidth: 5 }]);
    door.cancellable = false;
    await expect(client.execute('migrate_cancel')).rejects.toThrow('handed over already');
    door.cancellable = true;
    await client.execute('migrate_cancel');
    expect(await client.execute('query-migrate')).toMatchObject({ status: 'cancelling' });
    door.end(outcome('cancelled'));
    await expect
      .poll(async () => ((await client.execute('query-migrate')) as { status: string }).status)
      .toBe('cancelled');
    client.close();
  });
});

describe('the socket', () => {
  it('is 0600 and removed at close', async () => {
    expect(statSync(path).mode & 0o777).toBe(0o600);
    await server.close();
    expect(() => statSync(path)).toThrow();
  });

  it('a live one is refused, a stale one replaced, another file left alone', async () => {
    await expect(QmpServer.listen(vm, `unix:${path}`)).rejects.toThrow('in use by another process');
    const stale = join(dir, 'stale');
    const old = createServer();
    await new Promise<void>((resolve) => old.listen(stale, resolve));
    // A dead process leaves its socket behind: the same as unlinking nothing on close.
    (old as unknown as { _handle: { close(): void } })._handle.close();
    const again = await QmpServer.listen(vm, `unix:${stale}`);
    await again.close();
    const file = join(dir, 'file');
    writeFileSync(file, 'keep');
    await expect(QmpServer.listen(vm, `unix:${file}`)).rejects.toThrow('is no socket');
  });
});
