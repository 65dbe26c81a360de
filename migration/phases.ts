// The phases of a migration and the order of every step around the switch-over, as data. switchover.ts, recovery.ts and destination.ts walk
// these tables and do nothing that is not in them; test/unit/migration/phases.test.ts holds the order. main-job.md, "Order at switch-over".

/** Which part of the downtime in the report a step counts to. */
export type DowntimePart = 'stop' | 'finalRam' | 'deviceData' | 'state' | 'load';

export interface Step<Name extends string> {
  readonly name: Name;
  readonly part: DowntimePart | null;
  readonly why: string;
}

export type SwitchOverStep =
  | 'pause'
  | 'quiesce'
  | 'stop'
  | 'detachInterrupts'
  | 'saveStates'
  | 'collectRest'
  | 'sendRest'
  | 'drainDevices'
  | 'sendStates'
  | 'sendCrc'
  | 'ping'
  | 'awaitPong';

/** Source, before the point of no return. A failure in any of them walks WAY_BACK. */
export const SWITCH_OVER: readonly Step<SwitchOverStep>[] = [
  { name: 'pause', part: 'stop', why: 'vCPUs parked, outstanding exits completed, posted writes and console drained' },
  {
    name: 'quiesce',
    part: 'stop',
    why: 'every device in its P2P state before any stops, so none writes to a stopped one',
  },
  { name: 'stop', part: 'stop', why: 'STOP_COPY: DMA has ended, what the dirty sources say from now on is final' },
  {
    name: 'detachInterrupts',
    part: 'stop',
    why: 'de-assigning irqfds flushes them; eventfd counts are the pending bits',
  },
  { name: 'saveStates', part: 'state', why: 'into buffers, for RAM END precedes them in the stream; clock last' },
  { name: 'collectRest', part: 'finalRam', why: 'after the last writer has stopped' },
  { name: 'sendRest', part: 'finalRam', why: 'ends with RAM END' },
  { name: 'drainDevices', part: 'deviceData', why: 'to the true end of each device stream' },
  { name: 'sendStates', part: 'state', why: 'the FULL sections out of the buffers' },
  { name: 'sendCrc', part: 'state', why: 'over all before it that is not page contents' },
  { name: 'ping', part: 'state', why: 'asks whether all is loaded and every device has left RESUMING' },
  { name: 'awaitPong', part: 'load', why: 'counts only before its deadline' },
];

export type HandOverStep = 'eof' | 'postmigrate' | 'awaitShut' | 'handedOver' | 'trackingOff';

/** Source, from the one point of no return on: it never runs the guest again by itself. */
export const HAND_OVER: readonly Step<HandOverStep>[] = [
  { name: 'eof', part: null, why: 'the hand-over; from here on only the destination may run the guest' },
  { name: 'postmigrate', part: null, why: 'nobody here may take the machine for a paused one' },
  { name: 'awaitShut', part: null, why: 'without it the guest may or may not run at the destination' },
  { name: 'handedOver', part: null, why: 'STOP_COPY -> STOP is slow and would count as downtime before' },
  { name: 'trackingOff', part: null, why: 'DMA_LOGGING_STOP only after the final REPORT' },
];

export type WayBackStep = 'hangUp' | 'attachInterrupts' | 'runDevices' | 'trackingOff' | 'resume';

/** Source, after any failure or cancel before EOF: back to a guest that runs here. */
export const WAY_BACK: readonly Step<WayBackStep>[] = [
  {
    name: 'hangUp',
    part: null,
    why: 'first of all, so that the destination cannot wait for an EOF that will not come',
  },
  { name: 'attachInterrupts', part: null, why: 'before the devices run and signal' },
  { name: 'runDevices', part: null, why: 'from whatever state each is in, by its own ladder' },
  { name: 'resume', part: null, why: 'clock policy, then vCPUs; the guest stands still until then' },
  { name: 'trackingOff', part: null, why: 'costs the guest nothing but time it now has' },
];

export type LoadStep = 'checkComplete' | 'loadStates' | 'loadCore' | 'attachInterrupts' | 'leaveResuming' | 'pong';

/** Destination, after the last section and before PONG: what fails here is found while the source can still go on. */
export const LOAD: readonly Step<LoadStep>[] = [
  { name: 'checkComplete', part: 'load', why: 'nothing is loaded from a stream that lacks a section or was altered' },
  {
    name: 'loadStates',
    part: 'load',
    why: 'devices in machine order: routes, PCI_COMMAND, re-armed interrupts, while RESUMING',
  },
  { name: 'loadCore', part: 'load', why: 'vCPUs, irqchip, PIT, clock' },
  { name: 'attachInterrupts', part: 'load', why: 'irqfds on the routes that the states have set' },
  { name: 'leaveResuming', part: 'load', why: 'RESUMING -> STOP is where the driver validates' },
  { name: 'pong', part: 'load', why: 'the destination can run the guest' },
];

export type ResumeStep = 'quiesce' | 'runDevices' | 'startCpus' | 'shut';

/** Destination, after EOF. */
export const RESUME: readonly Step<ResumeStep>[] = [
  { name: 'quiesce', part: null, why: 'the P2P pass on the way up: all devices answer before any initiates' },
  { name: 'runDevices', part: null, why: 'to RUNNING' },
  { name: 'startCpus', part: null, why: 'unless the guest was paused at the source' },
  { name: 'shut', part: null, why: 'report, then SHUT(0): the source may end' },
];
