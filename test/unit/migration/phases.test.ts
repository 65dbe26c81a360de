// The order of steps around the switch-over is data; this holds the orders that main-job.md and the kernel's rules demand, whatever else
// is added to the tables.
import { describe, expect, it } from 'vitest';
import { HAND_OVER, LOAD, RESUME, SWITCH_OVER, WAY_BACK } from '../../../migration/phases.ts';

function expectOrder(table: readonly { readonly name: string }[], ...names: string[]): void {
  const found = names.map((name) => table.findIndex((step) => step.name === name));
  expect(found).not.toContain(-1);
  expect([...found].sort((a, b) => a - b)).toEqual(found);
}

describe('the order at switch-over', () => {
  it('vCPUs, P2P pass, STOP_COPY, irqfds, states, last collect, RAM END, device data, states sent, CRC, PING, PONG', () => {
    expect(SWITCH_OVER.map(({ name }) => name)).toEqual([
      'pause',
      'quiesce',
      'stop',
      'detachInterrupts',
      'saveStates',
      'collectRest',
      'sendRest',
      'drainDevices',
      'sendStates',
      'sendCrc',
      'ping',
      'awaitPong',
    ]);
  });
  it('EOF first, then nothing that could bring the guest back; STOP_COPY -> STOP and DMA_LOGGING_STOP only afterwards', () => {
    expect(HAND_OVER[0]!.name).toBe('eof');
    expectOrder(HAND_OVER, 'eof', 'postmigrate', 'awaitShut', 'handedOver', 'trackingOff');
  });
  it('destination: nothing is loaded before the stream is complete; RESUMING is left before PONG; interrupts while RESUMING', () => {
    expectOrder(LOAD, 'checkComplete', 'loadStates', 'loadCore', 'attachInterrupts', 'leaveResuming', 'pong');
    expect(LOAD.at(-1)!.name).toBe('pong');
  });
  it('destination after EOF: P2P pass, run, vCPUs, SHUT', () => {
    expect(RESUME.map(({ name }) => name)).toEqual(['quiesce', 'runDevices', 'startCpus', 'shut']);
  });
  it('way back: hang up first, interrupts before devices, devices before vCPUs', () => {
    expect(WAY_BACK[0]!.name).toBe('hangUp');
    expectOrder(WAY_BACK, 'hangUp', 'attachInterrupts', 'runDevices', 'resume', 'trackingOff');
  });
  it('every step of the pause counts to a part of the downtime', () => {
    for (const step of SWITCH_OVER) expect(step.part).not.toBeNull();
  });
});
