// Both state machines against each other over a memory channel: the order of steps, what arrives, and that exactly one side runs the guest
// after any failure at any step. The rules are main-job.md's "Order at switch-over" and "Convergence, deadlines, ends".
import { describe, expect, it } from 'vitest';
import { resumeByHand } from '../../../migration/way-back.ts';
import { deviceConfig, type EndedPair, migratePair, type RunningPair } from '../../fakes/migration-pair.ts';

function expectMoved(pair: EndedPair): void {
  expect(pair.outcome.error).toBeNull();
  expect(pair.outcome.status).toBe('completed');
  expect(pair.destinationError).toBeNull();
  const [source, there] = [pair.source, pair.built!];
  expect(Buffer.compare(source.ram.bytes, there.ram.bytes)).toBe(0);
  expect(there.rax).toBe(42);
  expect(there.state).toBe('running');
  expect(source.state).toBe('postmigrate');
  for (const [at, device] of there.devices.entries()) {
    expect(Buffer.compare(device.contents, source.devices[at]!.contents)).toBe(0);
    expect(device.register).toBe(0xbeef);
    expect(device.liveState).toBe('running');
  }
}

/** The guest is back at the source, whole, and has never run at the destination. */
function expectBack(pair: EndedPair): void {
  const { source, built } = pair;
  expect(source.state).toBe('running');
  expect(source.interruptsAttached).toBe(true);
  expect(source.tracker.on).toBe(false);
  for (const device of source.devices) expect(device.liveState).toBe('running');
  expect(pair.channels.source.aborted).toBe(true);
  expect(pair.outcome.unanswered).toBe(false);
  expect(built?.ran ?? false).toBe(false);
  expect(built?.closed ?? true).toBe(true);
  expect(pair.destinationError).not.toBeNull();
}

describe('a migration between two machines', () => {
  it('moves RAM, states and device data, and reports what it did', async () => {
    const pair = await migratePair();
    expectMoved(pair);
    const { report } = pair.outcome;
    expect(report.rounds.length).toBeGreaterThan(1);
    expect(report.rounds.at(-1)!.ended).toBe('guest stopped');
    expect(report.bytes.device).toBe(600_000);
    expect(report.bytes.state).toBeGreaterThan(0);
    expect(report.devices).toEqual([
      { id: 'dev0', preCopyBytes: 100_000, stopCopyBytes: 200_000, lateValidation: false },
      { id: 'dev1', preCopyBytes: 100_000, stopCopyBytes: 200_000, lateValidation: false },
    ]);
    expect(report.dirty.kvm).toBeGreaterThan(0);
    expect(report.dirty.deviceLog).toBeNull();
  });

  it('lets the parts of the downtime add up within 10 % or 20 ms', async () => {
    const { report } = (await migratePair()).outcome;
    const sum = Object.values(report.downtime).reduce((a, b) => a + b, 0);
    expect(Math.abs(sum - report.downtimeMs)).toBeLessThan(Math.max(20, report.downtimeMs / 10));
    // Every moment from the pause to SHUT belongs to one of them: what is left is what rounding to tenths makes of six numbers.
    expect(Math.abs(sum - report.downtimeMs)).toBeLessThan(0.5);
  });

  it('takes the steps of the source in the order of the table', async () => {
    const pair = await migratePair();
    const from = pair.sourceDiary.steps.indexOf('pause');
    const steps = pair.sourceDiary.steps.slice(from);
    const each = (step: string): string[] => [`dev0.${step}`, `dev1.${step}`];
    expect(steps).toEqual([
      'pause',
      ...each('quiesce'),
      ...each('stop'),
      'detachInterrupts',
      ...each('save'),
      'saveCore',
      'dirty.collectLast',
      ...each('drain'),
      ...each('handedOver'),
      'dirty.stop',
    ]);
  });

  it('takes the steps of the destination in the order of the table, the guest last', async () => {
    const pair = await migratePair();
    const each = (step: string): string[] => [`dev0.${step}`, `dev1.${step}`];
    expect(pair.destinationDiary.steps).toEqual([
      'build',
      ...each('loadSetup'),
      ...each('load'),
      'loadCore',
      'attachInterrupts',
      ...each('loadEnd'),
      ...each('quiesce'),
      ...each('run'),
      'clockAfterPause',
      'start',
    ]);
  });

  it('starts dirty tracking before the first page and the saving of the devices before the first round', async () => {
    const { sourceDiary } = await migratePair();
    const at = (step: string): number => sourceDiary.steps.indexOf(step);
    expect(at('dirty.start')).toBeLessThan(at('dev0.saveSetup'));
    expect(at('dev1.saveSetup')).toBeLessThan(at('dirty.collect'));
  });

  it('leaves a paused guest paused at the destination', async () => {
    const pair = await migratePair({
      prepare: ({ source }) => {
        source.state = 'paused';
      },
    });
    expect(pair.outcome.status).toBe('completed');
    expect(pair.built!.state).toBe('paused');
    expect(pair.built!.ran).toBe(false);
    expect(pair.built!.devices[0]!.liveState).toBe('running');
  });

  it('tells its listener setup, active, passes, device, completed', async () => {
    const heard: string[] = [];
    await migratePair({
      prepare: ({ migration }) =>
        migration.onChange((status, pass) => {
          heard.push(pass === null ? status : `pass ${pass}`);
        }),
    });
    expect(heard.filter((word) => !word.startsWith('pass'))).toEqual(['setup', 'active', 'device', 'completed']);
    expect(heard.filter((word) => word.startsWith('pass'))[0]).toBe('pass 1');
  });

  it('passes on to the tracker what the options say of the dirty sources', async () => {
    const pair = await migratePair({ options: { deviceLog: false, testDrop: 'kvmLastRound' } });
    expect(pair.source.tracker.options).toEqual({ deviceLog: false, drop: 'kvmLastRound' });
  });

  it('announces before the first page that a coarse source makes the last round big, and counts it', async () => {
    const hints: (string | null)[] = [];
    const pair = await migratePair({
      options: { downtimeLimitMs: 20_000 },
      prepare: ({ source, sourceDiary, migration }) => {
        source.tracker.coarseBytes = 3 << 20;
        sourceDiary.onStep = (step) => {
          if (step === 'dev0.saveSetup') hints.push(migration.progress.hint);
        };
      },
    });
    expect(hints[0]).toMatch(/carries up to 3 MiB/);
    expect(pair.outcome.status).toBe('completed');
  });

  it('negative control: with testDrop deviceState the device arrives without its contents', async () => {
    const pair = await migratePair({ options: { testDrop: 'deviceState' } });
    expect(pair.outcome.status).toBe('completed');
    expect(pair.built!.devices[0]!.contents.length).toBe(0);
  });
});

const SOURCE_STEPS = [
  'dirty.start',
  'dev0.saveSetup',
  'dev1.saveSetup',
  'dirty.collect',
  'dev0.iterate',
  'dev1.iterate',
  'pause',
  'dev0.quiesce',
  'dev1.quiesce',
  'dev0.stop',
  'dev1.stop',
  'detachInterrupts',
  'dev0.save',
  'saveCore',
  'dirty.collectLast',
  'dev0.drain',
  'dev1.drain',
];
const DESTINATION_STEPS = [
  'build',
  'dev0.loadSetup',
  'dev0.load',
  'dev1.load',
  'loadCore',
  'attachInterrupts',
  'dev0.loadEnd',
  'dev1.loadEnd',
];

describe('a failure before EOF leads back to a running guest at the source', () => {
  it.each(SOURCE_STEPS)('when the source fails at %s', async (step) => {
    const pair = await migratePair({
      prepare: ({ sourceDiary }) => {
        sourceDiary.failAt = step;
      },
    });
    expect(pair.outcome.status).toBe('failed');
    expect(pair.outcome.error).toContain(`fault injected at ${step}`);
    expectBack(pair);
  });

  it.each(DESTINATION_STEPS)('when the destination fails at %s, and the source says why', async (step) => {
    const pair = await migratePair({
      prepare: ({ destinationDiary }) => {
        destinationDiary.failAt = step;
      },
    });
    expect(pair.outcome.status).toBe('failed');
    expect(pair.outcome.error).toMatch(/^the destination refused: .*fault injected at/);
    expect(pair.outcome.error).toContain(step);
    expectBack(pair);
  });

  it.each([...SOURCE_STEPS, ...DESTINATION_STEPS])('when it is cancelled during %s', async (step) => {
    const pair = await migratePair({
      prepare: ({ sourceDiary, destinationDiary, migration }) => {
        const diary = SOURCE_STEPS.includes(step) ? sourceDiary : destinationDiary;
        diary.onStep = (seen) => {
          if (seen === step) expect(migration.cancel()).toBe(true);
        };
      },
    });
    expect(pair.outcome.status).toBe('cancelled');
    expect(pair.outcome.error).toBeNull();
    expectBack(pair);
  });

  it('resumes the guest even when a device does not come back, and names it', async () => {
    const pair = await migratePair({
      prepare: ({ sourceDiary }) => {
        sourceDiary.failAt = 'dev1.drain';
        sourceDiary.onStep = (step) => {
          if (step === 'dev1.drain') setImmediate(() => (sourceDiary.failAt = 'dev1.cancel'));
        };
      },
    });
    expect(pair.source.state).toBe('running');
    expect(pair.outcome.error).toContain('device dev1 did not come back');
  });

  it('but a guest that ended while it was being paused stays ended', async () => {
    const pair = await migratePair({
      prepare: ({ source, sourceDiary }) => {
        sourceDiary.onStep = (step) => {
          if (step !== 'pause') return;
          source.state = 'shutdown';
          sourceDiary.failAt = 'pause';
        };
      },
    });
    expect(pair.outcome.status).toBe('failed');
    expect(pair.source.state).toBe('shutdown');
    expect(pair.built!.ran).toBe(false);
  });

  it('when the guest ends while it is being moved', async () => {
    const pair = await migratePair({
      prepare: ({ source, sourceDiary }) => {
        sourceDiary.onStep = (step) => {
          if (step === 'dev0.iterate') source.endNow({ reason: 'guest-shutdown', exitCode: 0, detail: null });
        };
      },
    });
    expect(pair.outcome.status).toBe('failed');
    expect(pair.outcome.error).toContain('the guest ended');
  });

  // VFIO_DEVICE_RESET ends a device's migration session. A pause serves what the guest has asked for first: a reset may come even then.
  it.each(['dev0.saveSetup', 'dev0.iterate', 'pause'])(
    'when the guest is reset, devices and all, at %s',
    async (at) => {
      const pair = await migratePair({ prepare: resetAt(at) });
      expect(pair.outcome.status).toBe('failed');
      expect(pair.outcome.error).toContain('the guest was reset while it was being moved');
      expectBack(pair);
      expect(pair.source.listeners).toBe(0);
    },
  );
});

function resetAt(at: string) {
  return ({ source, sourceDiary }: RunningPair): void => {
    sourceDiary.onStep = (step) => {
      if (step === at) source.emit({ event: 'RESET', guest: true, reason: 'guest-reset' });
    };
  };
}

describe('a reset of the guest', () => {
  it('does not end the migration of a machine without device sessions: its RAM is sent again', async () => {
    const pair = await migratePair({ deviceIds: [], prepare: resetAt('dirty.collect') });
    expect(pair.outcome.error).toBeNull();
    expect(pair.built!.state).toBe('running');
  });
});

describe('a destination that does not fit refuses before any RAM, and the source says why', () => {
  const cases: [string, Parameters<typeof migratePair>[0], RegExp][] = [
    ['without the device', { host: { devices: [deviceConfig('dev0')] } }, /no device dev1 \(diary\) here/],
    [
      'with another device besides',
      { host: { devices: ['dev0', 'dev1', 'dev2'].map(deviceConfig) } },
      /has no device dev2/,
    ],
    ['with less RAM', { host: { memory: 4096 } }, /has 65536 bytes of memory, --memory here says 4096/],
    ['with other vCPUs', { host: { cpus: 4 } }, /has 1 vCPUs, --cpus here says 4/],
    ['with a lesser CPU', { cpuLacks: ['avx512f', 'invtsc'] }, /lacks avx512f, invtsc/],
  ];
  it.each(cases)('%s', async (_name, wanted, reason) => {
    const pair = await migratePair(wanted);
    expect(pair.outcome.error).toMatch(reason);
    expect(pair.destinationError!.message).toMatch(reason);
    expect(pair.sourceDiary.steps).not.toContain('dirty.start');
    expectBack(pair);
  });
});

describe('after EOF the source never runs the guest by itself', () => {
  it('is postmigrate, failed and unanswered when SHUT does not come', async () => {
    // The way back breaks after the last PONG: SHUT is lost.
    const pair = await migratePair({
      prepare: ({ channels, destinationDiary }) => {
        destinationDiary.onStep = (step) => {
          if (step === 'start') channels.destination.out.fault = { cutAt: channels.destination.txBytes };
        };
      },
    });
    expect(pair.outcome.status).toBe('failed');
    expect(pair.outcome.unanswered).toBe(true);
    expect(pair.source.state).toBe('postmigrate');
    expect(pair.sourceDiary.steps).not.toContain('start');
    expect(pair.built!.state).toBe('running');
  });

  it('runs it again by hand alone: interrupts, devices, then vCPUs', async () => {
    const pair = await migratePair({
      prepare: ({ destinationDiary }) => {
        destinationDiary.failAt = 'start';
      },
    });
    expect(pair.source.state).toBe('postmigrate');
    pair.sourceDiary.steps.length = 0;
    await resumeByHand(pair.source);
    expect(pair.sourceDiary.steps).toEqual([
      'attachInterrupts',
      'dev0.cancel',
      'dev1.cancel',
      'clockAfterPause',
      'start',
    ]);
    expect(pair.source.state).toBe('running');
    for (const device of pair.source.devices) expect(device.liveState).toBe('running');
  });

  it('says what the destination said when it could not run the guest', async () => {
    const pair = await migratePair({
      prepare: ({ destinationDiary }) => {
        destinationDiary.failAt = 'start';
      },
    });
    expect(pair.outcome.unanswered).toBe(true);
    expect(pair.outcome.error).toContain('fault injected at start');
    expect(pair.source.state).toBe('postmigrate');
    expect(pair.built!.ran).toBe(false);
  });

  it('refuses cancel', async () => {
    let refused: boolean | null = null;
    const pair = await migratePair({
      prepare: ({ destinationDiary, migration }) => {
        destinationDiary.onStep = (step) => {
          if (step === 'start') refused = migration.cancel();
        };
      },
    });
    expect(refused).toBe(false);
    expectMoved(pair);
  });
});
