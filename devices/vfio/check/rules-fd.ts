// Rules about the life of a data fd: what it answers within its session, and that it is good for nothing after it.
// linux/vfio.h, enum vfio_device_mig_state
import type { Bench } from './bench.ts';
import type { Answer, DataFd } from './data-fd.ts';
import { PRE_COPY, PRE_COPY_P2P, RESUMING, RUNNING, RUNNING_P2P, STOP, STOP_COPY, stateName } from './oracle.ts';
import { type Rule, Unreachable } from './rule.ts';

/** What a read of an fd whose session is over gives away; null: nothing, it is refused. */
export function readLeak({ bytes, error }: Answer): string | null {
  if (error !== null) return null;
  return bytes === 0 ? 'end of stream, as of a stream that is whole' : `${bytes} bytes`;
}

/** Every way out of a session by a single SET, from the state that owns it. */
function endings(bench: Bench): readonly (readonly [number, number])[] {
  const all: readonly (readonly [number, number])[] = [
    [STOP_COPY, STOP],
    [PRE_COPY, RUNNING],
    [PRE_COPY_P2P, RUNNING_P2P],
  ];
  return all.filter((pair) => pair.every((state) => bench.states.includes(state)));
}

const afterSession: Rule = {
  name: 'fd.after-saving',
  title: 'after its session a data fd gives neither data nor an end of stream, nor does a duplicate',
  cites: 'The STOP_COPY arc will terminate a data transfer session',
  needs: [],
  async run({ bench, expect }) {
    for (const [from, to] of endings(bench)) {
      const data = await bench.session(from);
      const duplicate = data.duplicate();
      await data.read(new Uint8Array(1));
      await bench.go(to);
      for (const [what, fd] of [['data fd', data] as const, ['duplicate', duplicate] as const]) {
        const leak = readLeak(await fd.read(new Uint8Array(4096)));
        expect(leak === null, `${stateName(from)} -> ${stateName(to)}, read of its old ${what}`, 'an error', `${leak}`);
      }
      duplicate.close();
    }
  },
};

const afterResuming: Rule = {
  name: 'fd.after-resuming',
  title: 'after RESUMING its data fd takes no more data',
  cites: 'Leaving RESUMING terminates a data transfer session',
  needs: [],
  async run({ bench, expect }) {
    const stream = await bench.stream();
    const data = await bench.session(RESUMING);
    if ((await data.writeAll(stream)) !== null) throw new Unreachable('a stream of this device was refused');
    await bench.go(STOP);
    const { bytes, error } = await data.write(stream.subarray(0, 1));
    expect(error !== null, 'RESUMING -> STOP, write to the old data fd', 'an error', `${bytes} bytes taken`);
  },
};

const afterClose: Rule = {
  name: 'fd.after-close',
  title: 'a data fd that outlives its device fd gives nothing of the device',
  cites: 'The user is responsible to close this FD when it is finished',
  needs: [],
  async run({ bench, expect }) {
    const data = await bench.session(STOP_COPY);
    await bench.reopen();
    const leak = readLeak(await data.read(new Uint8Array(4096)));
    expect(
      leak === null,
      'device fd closed in STOP_COPY and opened anew, read of the old data fd',
      'an error',
      `${leak}`,
    );
  },
};

const oneSession: Rule = {
  name: 'fd.saving-group',
  title: 'the data fd lives on while the device moves within the saving states',
  cites: 'does not terminate or otherwise affect the associated fd',
  needs: ['pre-copy'],
  async run({ bench, expect }) {
    const data = await bench.session(PRE_COPY);
    const way = bench.able.p2p ? [PRE_COPY_P2P, PRE_COPY, PRE_COPY_P2P, STOP_COPY] : [STOP_COPY];
    for (const state of way) {
      await bench.go(state);
      const { bytes, error } = await data.read(new Uint8Array(1));
      const alive = error === null || error === 'ENOMSG';
      expect(alive, `read of the data fd of PRE_COPY in ${stateName(state)}`, 'data', error ?? `${bytes} bytes`);
    }
  },
};

const newSession: Rule = {
  name: 'fd.new-session',
  title: 'a session that was given up leaves nothing behind: the next one has a stream that loads',
  cites: 'will return a new data_fd',
  needs: [],
  async run({ bench, expect }) {
    await loadsAtAll(bench);
    const given = bench.able.preCopy ? [STOP_COPY, PRE_COPY] : [STOP_COPY];
    for (const state of given) {
      const data = await bench.session(state);
      await data.read(new Uint8Array(7));
      data.close();
      const next = await bench.session(STOP_COPY);
      await judge(bench, expect, await next.readToEnd(), `after a session of ${stateName(state)} was closed early`);
    }
  },
};

type Expect = (holds: boolean, did: string, expected: string, seen: string) => void;

/** Whether the device takes its own stream. */
async function judge(bench: Bench, expect: Expect, stream: Uint8Array, did: string): Promise<void> {
  await bench.stream();
  const refused = await bench.load(stream);
  const answer = refused === null ? await bench.set(STOP) : null;
  const seen = refused ?? answer?.error ?? null;
  expect(seen === null, `${did}: stream of ${stream.length} bytes loaded`, 'accepted', `${seen}`);
}

/** A device that refuses its plainest stream is another rule's finding. */
async function loadsAtAll(bench: Bench): Promise<void> {
  const refused = await bench.load(await bench.stream());
  if (refused !== null) throw new Unreachable(`a stream of this device was refused by write() (${refused})`);
  await bench.go(STOP);
}

const sizes: Rule = {
  name: 'fd.read-sizes',
  title: 'a stream read by one byte, odd sizes and a huge one is whole',
  cites: 'must preserve the byte order of the stream',
  needs: [],
  async run({ bench, expect }) {
    await loadsAtAll(bench);
    const ways: readonly (readonly [string, readonly number[]])[] = [
      ['one byte', new Array<number>(512).fill(1)],
      ['odd sizes', [1, 3, 7, 4095, 4097, 65537]],
      ['16 MiB', [16 * 2 ** 20]],
    ];
    for (const [what, reads] of ways) {
      const data = await bench.session(STOP_COPY);
      await judge(bench, expect, await data.readToEnd(reads), `STOP_COPY read by ${what}`);
    }
  },
};

const fault: Rule = {
  name: 'fd.fault',
  title: 'a read into memory that is not there loses no byte',
  cites: 'must preserve the byte order of the stream',
  needs: [],
  async run({ bench, expect }) {
    await loadsAtAll(bench);
    const data = await bench.session(STOP_COPY);
    const page = 4096;
    // A mapping beyond the end of its file cannot be written to, by the kernel either.
    const ram = bench.door.createRam(page, { hugePages: false, populate: false });
    const mapping = bench.door.mapFd(ram.fd, 0, 2 * page, true);
    const into = new Uint8Array(mapping.view, page - 5, 2 * 5);
    const { bytes, error } = await data.read(into);
    expect(
      error !== null || bytes <= 5,
      'read() over the end of a mapping',
      'EFAULT or a short read',
      `${bytes} bytes`,
    );
    const head = new Uint8Array(error === null ? Math.min(bytes, 5) : 0);
    head.set(new Uint8Array(mapping.view, page - 5, head.length));
    const rest = await data.readToEnd();
    mapping.unmap();
    ram.close();
    await judge(bench, expect, Buffer.concat([head, rest]), 'read() over the end of a mapping, then the rest');
  },
};

const end: Rule = {
  name: 'fd.end',
  title: 'in STOP_COPY the stream ends with 0, again and again, and never with ENOMSG; poll calls it readable',
  cites: 'Once in STOP_COPY the migration data FD has a permanent end of stream',
  needs: [],
  async run({ bench, expect }) {
    const data = await bench.session(STOP_COPY);
    const { end: how } = await data.readSome(Number.MAX_SAFE_INTEGER);
    expect(how === 'end of stream', 'STOP_COPY read to its end', 'read() gives 0', `${how}`);
    if (how !== 'end of stream') return;
    const { bytes, error } = await data.read(new Uint8Array(64));
    expect(error === null && bytes === 0, 'another read() after the end', '0', error ?? `${bytes} bytes`);
    expect(data.readable(), 'poll() after the end', 'readable', 'not readable');
  },
};

const direction: Rule = {
  name: 'fd.direction',
  title: 'a saving session cannot be written, a resuming one not read',
  cites: 'the migration data will flow over the FD using read() and write()',
  needs: [],
  async run({ bench, expect }) {
    const saving = await bench.session(STOP_COPY);
    const wrote = await saving.write(new Uint8Array(16));
    expect(wrote.error !== null, 'write() to the data fd of STOP_COPY', 'an error', `${wrote.bytes} bytes taken`);
    const resuming = await bench.session(RESUMING);
    const read = await resuming.read(new Uint8Array(16));
    expect(read.error !== null, 'read() of the data fd of RESUMING', 'an error', `${readLeak(read)}`);
  },
};

const seek: Rule = {
  name: 'fd.seek',
  title: 'a stream has no positions: pread is refused',
  cites: 'must preserve the byte order of the stream',
  needs: [],
  async run({ bench, expect, note }) {
    const data = await bench.session(STOP_COPY);
    const { bytes, error } = await data.read(new Uint8Array(16), 1);
    expect(error !== null, 'pread() at 1 of the data fd', 'ESPIPE', `${bytes} bytes`);
    if (error !== null && error !== 'ESPIPE') note(`pread() of the data fd gives ${error}, where ESPIPE is usual`);
  },
};

const nonBlocking: Rule = {
  name: 'fd.non-blocking',
  title: 'with O_NONBLOCK a stream that is not yet at its end says EAGAIN or ENOMSG, never its end',
  cites: 'the kernel driver should return ENOMSG from read()',
  needs: ['pre-copy'],
  async run({ bench, expect }) {
    const data: DataFd = await bench.session(PRE_COPY);
    data.nonBlocking();
    const { end: how } = await data.readSome(64 * 2 ** 20);
    if (how === null || how === 'end of stream') return;
    expect(['ENOMSG', 'EAGAIN'].includes(how), 'PRE_COPY read with O_NONBLOCK until nothing is left', 'ENOMSG', how);
    expect(bench.get() === PRE_COPY, 'the state after that', 'PRE_COPY', stateName(bench.get()));
    await bench.go(RUNNING);
  },
};

export const fdRules: readonly Rule[] = [
  oneSession,
  afterSession,
  afterResuming,
  afterClose,
  newSession,
  sizes,
  fault,
  end,
  direction,
  seek,
  nonBlocking,
];
