// Rules about PRE_COPY: VFIO_MIG_GET_PRECOPY_INFO, the temporary end of stream, and leaving after any number of bytes; and MIG_DATA_SIZE.
// linux/vfio.h, VFIO_MIG_GET_PRECOPY_INFO, VFIO_DEVICE_FEATURE_MIG_DATA_SIZE
import { VFIO_DEVICE_FEATURE_MIG_DATA_SIZE } from '../../../native/abi/vfio.ts';
import { callFeature, FEATURE_DATA, featureArg } from '../migration/feature-arg.ts';
import type { Bench } from './bench.ts';
import type { DataFd } from './data-fd.ts';
import { codeOf } from './opened.ts';
import { PRE_COPY, PRE_COPY_P2P, RUNNING, STOP, STOP_COPY, stateName } from './oracle.ts';
import { type Rule, Unreachable } from './rule.ts';

const MOST = 64 * 2 ** 20;

/** A data fd that died on the way is another rule's finding. */
async function alive(data: DataFd): Promise<void> {
  const { error } = await data.read(new Uint8Array(1));
  if (error !== null && error !== 'ENOMSG') throw new Unreachable(`the data fd cannot be read (${error})`);
}

async function infoOrUnreachable(data: DataFd) {
  const info = await data.precopyInfo();
  if (info.error !== null) throw new Unreachable(`VFIO_MIG_GET_PRECOPY_INFO does not work (${info.error})`);
  return info;
}

/** To the temporary end of stream, whichever way the driver says it. */
async function drain(data: DataFd): Promise<{ data: Uint8Array; end: string }> {
  const { data: bytes, end } = await data.readSome(MOST);
  if (end === null) throw new Unreachable(`PRE_COPY had no end within ${MOST / 2 ** 20} MiB: the device is busy`);
  return { data: bytes, end };
}

const info: Rule = {
  name: 'precopy.info',
  title: 'GET_PRECOPY_INFO works in the PRE_COPY states, of which initial_bytes is more than 0 at first',
  cites: 'Support for this ioctl is mandatory if a driver claims to support VFIO_MIGRATION_PRE_COPY',
  needs: ['pre-copy'],
  async run({ bench, expect }) {
    const data = await bench.session(PRE_COPY);
    const states = bench.able.p2p ? [PRE_COPY, PRE_COPY_P2P] : [PRE_COPY];
    for (const state of states) {
      await bench.go(state);
      await alive(data);
      const { error } = await data.precopyInfo();
      expect(error === null, `GET_PRECOPY_INFO in ${stateName(state)}`, 'success', `${error}`);
    }
  },
};

const initial: Rule = {
  name: 'precopy.initial',
  title: 'initial_bytes is not zero at first and decreases as data is read, to zero at the temporary end',
  cites: 'This field should have a non-zero initial value and decrease as migration data is read from the device',
  needs: ['pre-copy'],
  async run({ bench, expect }) {
    const data = await bench.session(PRE_COPY);
    const before = await infoOrUnreachable(data);
    const { data: bytes } = await drain(data);
    // A device may have nothing to give before it is stopped: then there is nothing to say of it.
    const right = before.initial > 0 || bytes.length === 0;
    const did = `GET_PRECOPY_INFO on entering PRE_COPY, which gave ${bytes.length} bytes`;
    expect(right, did, 'initial_bytes > 0', `${before.initial}`);
    const after = await infoOrUnreachable(data);
    expect(after.initial === 0, 'GET_PRECOPY_INFO at the temporary end', 'initial_bytes 0', `${after.initial}`);
  },
};

const dirty: Rule = {
  name: 'precopy.dirty',
  title: 'dirty_bytes starts at zero',
  cites: 'This field starts at zero and may increase as the internal device state is modified',
  needs: ['pre-copy'],
  async run({ bench, expect }) {
    const data = await bench.session(PRE_COPY);
    const before = await infoOrUnreachable(data);
    expect(before.dirty === 0, 'GET_PRECOPY_INFO on entering PRE_COPY', 'dirty_bytes 0', `${before.dirty}`);
  },
};

const elsewhere: Rule = {
  name: 'precopy.elsewhere',
  title: 'GET_PRECOPY_INFO is refused in STOP_COPY and after the session',
  cites:
    'This ioctl is valid only in PRE_COPY states and kernel driver should return -EINVAL from any other migration state',
  needs: ['pre-copy'],
  async run({ bench, expect, note }) {
    const data = await bench.session(PRE_COPY);
    await infoOrUnreachable(data);
    await bench.go(STOP_COPY);
    await alive(data);
    const inCopy = await data.precopyInfo();
    expect(inCopy.error === 'EINVAL', 'GET_PRECOPY_INFO in STOP_COPY', 'EINVAL', inCopy.error ?? 'success');
    await bench.go(STOP);
    const after = await data.precopyInfo();
    expect(after.error !== null, 'GET_PRECOPY_INFO after the session', 'an error', 'success');
    const fresh = await (await bench.session(STOP_COPY)).precopyInfo();
    expect(fresh.error !== null, 'GET_PRECOPY_INFO in a session begun in STOP_COPY', 'an error', 'success');
    if (fresh.error !== null && fresh.error !== 'EINVAL')
      note(`in a session begun in STOP_COPY it gives ${fresh.error}`);
  },
};

const argsz: Rule = {
  name: 'precopy.argsz',
  title: 'GET_PRECOPY_INFO refuses an argument that is too short',
  cites: 'embedding the structure length (argsz) and flags into structures passed',
  needs: ['pre-copy'],
  async run({ bench, expect }) {
    const data = await bench.session(PRE_COPY);
    await infoOrUnreachable(data);
    const { error } = await data.precopyInfo(8);
    expect(error !== null, 'GET_PRECOPY_INFO with argsz 8', 'EINVAL', 'success');
  },
};

const temporary: Rule = {
  name: 'precopy.end',
  title: 'the temporary end of stream is ENOMSG, not an end',
  cites: 'When read() is done on this temporary end of stream the kernel driver should return ENOMSG from read()',
  needs: ['pre-copy'],
  async run({ bench, expect }) {
    const data = await bench.session(PRE_COPY);
    const { end } = await drain(data);
    expect(end === 'ENOMSG', 'PRE_COPY read until nothing is left', 'ENOMSG', end);
  },
};

const estimate: Rule = {
  name: 'precopy.estimate',
  title: 'the temporary end comes exactly when initial_bytes and dirty_bytes are zero',
  cites: 'reached when both initial_bytes and dirty_byte are zero',
  needs: ['pre-copy'],
  async run({ bench, expect }) {
    const data = await bench.session(PRE_COPY);
    await infoOrUnreachable(data);
    // A device at work may change in between, hence more than once.
    let rest = 0;
    for (let attempt = 0; attempt < 5; attempt++) {
      await drain(data);
      const left = await infoOrUnreachable(data);
      rest = left.dirty;
      if (rest === 0) break;
    }
    expect(rest === 0, 'GET_PRECOPY_INFO at the temporary end, five times', 'dirty_bytes 0', `${rest}`);
    if (rest !== 0) return;
    const { data: more } = await data.readSome(MOST);
    expect(more.length === 0, 'read() when dirty_bytes and initial_bytes were 0', 'ENOMSG', `${more.length} bytes`);
  },
};

/** PRE_COPY left for STOP_COPY after `bytes` of it. */
async function leaveAfter(bench: Bench, bytes: number): Promise<Uint8Array> {
  const data = await bench.session(PRE_COPY);
  const head = (await data.readSome(bytes)).data;
  await bench.go(STOP_COPY);
  return Buffer.concat([head, await data.readToEnd()]);
}

const leaving: Rule = {
  name: 'precopy.leaving',
  title: 'PRE_COPY may be left after none, some or all of its data: the stream is whole',
  cites: 'Leaving PRE_COPY earlier might make things slower',
  needs: ['pre-copy'],
  async run({ bench, expect }) {
    if ((await bench.load(await bench.stream())) !== null) throw new Unreachable('a stream of this device was refused');
    await bench.go(STOP);
    for (const bytes of [0, 5, MOST]) {
      const stream = await leaveAfter(bench, bytes);
      const refused = await bench.load(stream);
      const error = refused ?? (await bench.set(STOP)).error;
      const how = bytes === MOST ? 'all' : `${bytes} bytes`;
      expect(error === null, `PRE_COPY left after ${how} of it, stream loaded`, 'accepted', `${error}`);
    }
  },
};

const cancelled: Rule = {
  name: 'precopy.cancelled',
  title: 'PRE_COPY that was given up can be begun again, from its start',
  cites: 'The PRE_COPY arc will terminate a data transfer session',
  needs: ['pre-copy'],
  async run({ bench, expect }) {
    const first = await bench.session(PRE_COPY);
    const before = await infoOrUnreachable(first);
    await drain(first);
    await bench.go(RUNNING);
    const second = await bench.session(PRE_COPY);
    const again = await infoOrUnreachable(second);
    const right = before.initial === 0 || again.initial > 0;
    expect(
      right,
      'PRE_COPY -> RUNNING -> PRE_COPY',
      `initial_bytes as at first (${before.initial})`,
      `${again.initial}`,
    );
  },
};

/** MIG_DATA_SIZE: a number, or the errno. */
async function dataSize(bench: Bench): Promise<number | string> {
  const arg = featureArg(VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, 'get', 8);
  try {
    await callFeature({ door: bench.door, fd: bench.fd }, 'MIG_DATA_SIZE', arg);
  } catch (error) {
    return codeOf(error);
  }
  return Number(arg.view.getBigUint64(FEATURE_DATA, true));
}

const sizeAnywhere: Rule = {
  name: 'size.states',
  title: 'MIG_DATA_SIZE answers in every state and leaves it',
  cites: 'Note: Can be called on each device state',
  needs: ['data-size'],
  async run({ bench, expect }) {
    for (const state of bench.states) {
      await bench.enter(state);
      const size = await dataSize(bench);
      const seen = typeof size === 'string' ? size : stateName(bench.get());
      const right = typeof size === 'number' && bench.get() === state;
      expect(right, `MIG_DATA_SIZE in ${stateName(state)}`, `a size, still in ${stateName(state)}`, seen);
    }
  },
};

const sizeMeans: Rule = {
  name: 'size.estimate',
  title: 'MIG_DATA_SIZE is not zero for a device that has data to give in STOP_COPY',
  cites: 'read back the estimated data length that will be required to complete stop copy',
  needs: ['data-size'],
  async run({ bench, expect, note }) {
    const ahead = await dataSize(bench);
    const data = await bench.session(STOP_COPY);
    const within = await dataSize(bench);
    const { length } = await data.readToEnd();
    if (typeof ahead === 'string' || typeof within === 'string') throw new Unreachable('MIG_DATA_SIZE does not answer');
    expect(length === 0 || ahead > 0, `MIG_DATA_SIZE in RUNNING; STOP_COPY gave ${length} bytes`, 'more than 0', '0');
    expect(length === 0 || within > 0, `MIG_DATA_SIZE in STOP_COPY, which gave ${length} bytes`, 'more than 0', '0');
    if (length > 2 * ahead) note(`MIG_DATA_SIZE said ${ahead} bytes, STOP_COPY gave ${length}`);
  },
};

export const precopyRules: readonly Rule[] = [
  info,
  initial,
  dirty,
  elsewhere,
  argsz,
  temporary,
  estimate,
  leaving,
  cancelled,
];
export const sizeRules: readonly Rule[] = [sizeAnywhere, sizeMeans];
