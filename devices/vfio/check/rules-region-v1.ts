// Rules about a migration region's registers and states, for v1 and, where the texts are equal, v7; rules-region-data.ts has those about what is
// saved and loaded. Sentences are of linux/vfio.h of Linux 5.8, of the patch of July 2019 where both have them.
import {
  bitsName,
  ERROR,
  PRE_COPY,
  REG,
  RESUMING,
  type RegionBench,
  RUNNING,
  STOP_AND_COPY,
  STOPPED,
} from './bench-region.ts';
import { u32Bytes } from './check-region.ts';
import { type Rule, type Trial, Unreachable } from './rule.ts';
import { dmaOf, landed, ramAt, startWrite } from './rules-quiet.ts';

type RegionRule = Rule<RegionBench>;

const PAGE = 4096;
const TARGET = 2 * PAGE;

const first: RegionRule = {
  name: 'region.first',
  title: 'a device that was opened is RUNNING',
  cites: 'Default state of VFIO device is _RUNNNG when the user application starts.',
  needs: [],
  async run({ bench, expect }) {
    const state = await bench.state();
    expect(state === RUNNING, 'device opened, device_state read', bitsName(RUNNING), bitsName(state));
  },
};

const reserved: RegionRule = {
  name: 'region.reserved',
  title: 'the reserved field reads 0, also after a write',
  cites: 'Reads on this field return zero and writes are ignored.',
  needs: [],
  async run({ bench, expect }) {
    const before = await bench.region.u32(REG.reserved, 'reserved');
    expect(before === 0, 'reserved read', '0', `${before}`);
    const error = await bench.region.setU32(REG.reserved, 0xa5a5a5a5);
    const after = await bench.region.u32(REG.reserved, 'reserved');
    expect(after === 0, 'reserved written with 0xa5a5a5a5, read', '0', `${after} (the write: ${error ?? 'success'})`);
  },
};

/** The arcs that the text draws, from RUNNING on, each walk on its own. */
const WALKS: readonly (readonly number[])[] = [
  [STOPPED],
  [STOP_AND_COPY, STOPPED],
  [PRE_COPY, STOP_AND_COPY, STOPPED],
  [RESUMING],
];

const arcs: RegionRule = {
  name: 'region.arcs',
  title: 'every drawn change of state works, and device_state then reads as it was written',
  cites: 'the vendor driver should return success on write(device_state, state) system call',
  needs: [],
  async run({ bench, expect }) {
    for (const walk of WALKS) {
      await bench.home();
      let from = RUNNING;
      for (const to of walk) {
        const { error, state } = await bench.put(to);
        const seen = error ?? bitsName(state);
        expect(seen === bitsName(to), `${bitsName(from)} -> ${bitsName(to)}`, bitsName(to), seen);
        if (seen !== bitsName(to)) break;
        from = to;
      }
    }
    await bench.home();
  },
};

/** Refused, and then in a state that is one. */
async function invalid({ bench, expect }: Trial<RegionBench>, values: readonly number[]): Promise<void> {
  for (const bits of values) {
    for (const from of [RUNNING, STOP_AND_COPY]) {
      await bench.enter(from);
      const { error, state } = await bench.put(bits);
      const did = `device_state written with ${bitsName(bits)} in ${bitsName(from)}`;
      expect(error !== null, did, 'an error', `success, in ${bitsName(state)}`);
      const valid = state === from || (bench.abi === 'v1' && state === ERROR);
      if (error !== null) expect(valid, `${did}; read back`, bitsName(from), bitsName(state));
    }
  }
}

const invalidV1: RegionRule = {
  name: 'region.invalid',
  title: 'a state that is none is refused, and device_state reads as before, or as the error state',
  cites: '101b => Invalid state',
  needs: [],
  run: (trial) => invalid(trial, [0b101, 0b110, 0b111]),
};

const invalidV7: RegionRule = {
  ...invalidV1,
  title: 'saving and resuming at once is refused, and device_state reads as before',
  cites: '_SAVING and _RESUMING set at the same time is invalid state.',
  run: (trial) => invalid(trial, [0b110, 0b111]),
};

const preserved: RegionRule = {
  name: 'region.reserved-bits',
  title: 'bits 3 to 31 of device_state stay as they are, and as they are written',
  cites:
    'Bits 3 - 31 are reserved for future use. To preserve them, the user application should perform a read-modify-write',
  needs: [],
  async run({ bench, expect, note }) {
    const high = ((await bench.word()) >>> 3) << 3;
    for (const to of [STOP_AND_COPY, STOPPED, RESUMING]) {
      await bench.enter(to);
      const word = await bench.word();
      const seen = `0x${(((word >>> 3) << 3) >>> 0).toString(16)}`;
      expect((word >>> 3) << 3 === high, `bits 3-31 in ${bitsName(to)}`, `0x${(high >>> 0).toString(16)}`, seen);
    }
    await bench.home();
    const written = ((await bench.word()) ^ (1 << 30)) >>> 0;
    const error = await bench.region.setU32(REG.device_state, written);
    if (error !== null) {
      note(`a write that changes a reserved bit of device_state is refused (${error})`);
      return;
    }
    const word = await bench.word();
    const hex = (value: number) => `0x${value.toString(16)}`;
    expect(word === written, `device_state written with ${hex(written)}, read`, hex(written), hex(word));
    await bench.region.setU32(REG.device_state, (written ^ (1 << 30)) >>> 0);
  },
};

/** Offset and width of accesses that are no field at its width. */
function wrongAccesses(header: number): [number, number][] {
  const wrong: [number, number][] = [];
  for (const [at, width] of [[REG.device_state, 4], ...wideFields(header)] as [number, number][]) {
    for (const narrow of [1, 2, 4].filter((each) => each < width)) wrong.push([at, narrow]);
    wrong.push([at + 1, width === 4 ? 2 : 4], [at, width - 1]);
    if (width === 8) wrong.push([at + 4, 4]);
  }
  wrong.push([REG.device_state, 8], [REG.reserved + 2, 8]);
  return wrong;
}

function wideFields(header: number): [number, number][] {
  const fields = [REG.pending_bytes, REG.data_offset, REG.data_size, REG.start_pfn, REG.page_size, REG.total_pfns];
  return fields.filter((at) => at < header).map((at) => [at, 8]);
}

const widths: RegionRule = {
  name: 'region.widths',
  title: 'a field is accessed whole and aligned: any other access fails',
  cites: 'Field accesses from this structure are only supported at their native width and alignment',
  needs: [],
  async run({ bench, expect }) {
    await bench.enter(STOP_AND_COPY);
    for (const [at, width] of wrongAccesses(bench.headerBytes)) {
      const error = await bench.region.tryRead(at, new Uint8Array(width));
      expect(error !== null, `read of ${width} bytes at ${at}`, 'an error', 'success');
    }
    await bench.home();
    const word = u32Bytes(await bench.word());
    for (const width of [1, 2, 3]) {
      const error = await bench.region.tryWrite(REG.device_state, word.subarray(0, width));
      expect(error !== null, `write of ${width} bytes of device_state`, 'an error', 'success');
    }
  },
};

const resets: RegionRule = {
  name: 'region.reset',
  title: 'a reset in any state leads to RUNNING, from where a save can be begun',
  cites: 'must use the device reset ioctl to recover the device from VFIO_DEVICE_STATE_ERROR state.',
  needs: ['reset'],
  async run({ bench, expect }) {
    for (const bits of [RUNNING, STOPPED, STOP_AND_COPY, PRE_COPY, RESUMING]) {
      await bench.enter(bits);
      const error = await bench.reset();
      const seen = error ?? bitsName(await bench.state());
      expect(seen === bitsName(RUNNING), `VFIO_DEVICE_RESET in ${bitsName(bits)}`, bitsName(RUNNING), seen);
      if (seen !== bitsName(RUNNING)) return;
      const answer = await bench.put(STOP_AND_COPY);
      const begun = answer.error ?? bitsName(answer.state);
      expect(answer.state === STOP_AND_COPY, `stop-and-copy after a reset in ${bitsName(bits)}`, 'it works', begun);
    }
  },
};

const closed: RegionRule = {
  name: 'region.close',
  title: 'a device that was closed in any state is RUNNING for the next user',
  cites: 'Default state of VFIO device is _RUNNNG when the user application starts.',
  needs: [],
  async run({ bench, expect }) {
    for (const bits of [STOPPED, STOP_AND_COPY, PRE_COPY, RESUMING]) {
      await bench.enter(bits);
      await bench.reopen();
      const state = await bench.state();
      expect(state === RUNNING, `closed in ${bitsName(bits)}, opened anew`, bitsName(RUNNING), bitsName(state));
      if (state !== RUNNING) return;
    }
  },
};

/** Whatever a driver takes for an internal error: data that are none. */
async function driveToError(bench: RegionBench): Promise<void> {
  const chunks = await bench.save();
  const bad = chunks.map((bytes) => new Uint8Array(bytes.length).fill(0xa5));
  for (const wrong of [bad, chunks.slice(0, -1)]) {
    await bench.tryLoad(wrong);
    if ((await bench.state()) === ERROR) return;
  }
  throw new Unreachable('no bad data brought the device into the error state');
}

const error: RegionRule = {
  name: 'region.error',
  title: 'only a reset leads out of the error state',
  cites: 'must use the device reset ioctl to recover the device from VFIO_DEVICE_STATE_ERROR state.',
  needs: ['reset'],
  async run({ bench, expect }) {
    await driveToError(bench);
    for (const bits of [RUNNING, STOPPED, STOP_AND_COPY, RESUMING]) {
      const { error: refused, state } = await bench.put(bits);
      const stays = refused !== null && state === ERROR;
      expect(stays, `${bitsName(ERROR)} -> ${bitsName(bits)}`, 'an error', `${refused}, in ${bitsName(state)}`);
      if (!stays) return;
    }
    const failed = await bench.reset();
    const seen = failed ?? bitsName(await bench.state());
    expect(seen === bitsName(RUNNING), `VFIO_DEVICE_RESET in ${bitsName(ERROR)}`, bitsName(RUNNING), seen);
  },
};

const STOPS = 'When the device state is changed to _STOP, driver should stop the device before write() returns.';

const stop: RegionRule = {
  name: 'region.stop',
  title: 'no DMA after the write that stopped the device: what was under way has landed, or waits',
  cites: STOPS,
  needs: ['dma'],
  async run({ bench, expect }) {
    const length = await startWrite(bench, TARGET, 77);
    if (!(await landed(bench, TARGET, length, 77))) throw new Unreachable('DMA in RUNNING does not land');
    for (const [i, bits] of [STOPPED, STOP_AND_COPY, RESUMING].entries()) {
      await bench.home();
      await startWrite(bench, TARGET, 10 + i);
      await bench.go(bits);
      const before = ramAt(bench, TARGET, length);
      await bench.port.sleep(2 * dmaOf(bench).ms);
      await bench.settle();
      const still = ramAt(bench, TARGET, length).equals(before);
      expect(still, `DMA write started, ${bitsName(bits)}, RAM compared later`, 'unchanged', 'written to');
    }
  },
};

const runs: RegionRule = {
  name: 'region.runs',
  title: 'in RUNNING and in pre-copy the device does DMA, also after it was stopped',
  cites: 'Device running, which is the default state',
  needs: ['dma'],
  async run({ bench, expect }) {
    for (const [i, after] of [RUNNING, STOPPED, STOP_AND_COPY].entries()) {
      await bench.enter(after);
      await bench.home();
      if (i === 0) await bench.go(PRE_COPY);
      const length = await startWrite(bench, TARGET, i + 1);
      const there = await landed(bench, TARGET, length, i + 1);
      const where = bitsName(await bench.state());
      expect(there, `DMA write of ${length} bytes in ${where}, after ${bitsName(after)}`, 'it lands', 'it did not');
    }
  },
};

export const regionRules: readonly RegionRule[] = [first, arcs, preserved, widths, resets, closed, stop, runs];
export const v1OnlyRules: readonly RegionRule[] = [reserved, invalidV1, error];
export const v7OnlyRules: readonly RegionRule[] = [invalidV7];
