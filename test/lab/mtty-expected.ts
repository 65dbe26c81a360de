// What `ferry vfio check` has to find in mtty, and nothing else: a table of true defects of that driver, with the lines that cause each, by hand.
// Lines are those of samples/vfio-mdev/mtty.c in Debian's linux-source-6.12 6.12.117. Used by vfio-check.test.ts. A finding that is not here is
// either a defect of mtty that nobody has looked at yet, or a wrong rule.

export interface ExpectedFinding {
  readonly rule: string;
  readonly did: string;
  readonly seen: RegExp;
  /** Function and lines. */
  readonly source: string;
  readonly why: string;
}

const SUCCESS = /^success$/;

/** In the order of the rules. */
export const MTTY_FINDINGS: readonly ExpectedFinding[] = [
  {
    rule: 'precopy.end',
    did: 'PRE_COPY read until nothing is left',
    seen: /^end of stream$/,
    source: 'mtty_save_read, 909-921',
    why: 'with nothing left to copy it returns 0 in every state, and never ENOMSG',
  },
  {
    rule: 'stream.retried',
    did: 'stream with byte 0 of 96 changed, refused by write() (EFAULT); SET STOP',
    seen: SUCCESS,
    source: 'mtty_resume_write, 1066 and 1073; mtty_load_state, 955',
    why: 'a header that it refuses is counted in filled_size all the same, which is all that is looked at when RESUMING is left',
  },
  {
    rule: 'reset.flag',
    did: 'VFIO_DEVICE_RESET, without FLAGS_RESET',
    seen: SUCCESS,
    source: 'mtty_get_device_info, 1781; mtty_ioctl, 1899',
    why: 'it can be reset and does not say so',
  },
  {
    rule: 'close.states',
    did: 'device fd closed in STOP, opened anew',
    seen: /^STOP$/,
    source: 'mtty_close, 1935-1943',
    why: 'closing leaves mdev_state->state alone, and so does opening: mtty_dev_ops has no open_device',
  },
  {
    rule: 'close.private',
    did: 'internal state changed, device closed and opened anew, hash',
    seen: / as before$/,
    source: 'mtty_close, 1935-1943',
    why: 'the same of mdev_state->s, the UARTs: registers and FIFO are for the next user to read',
  },
  {
    rule: 'log.twice',
    did: 'START while logging',
    seen: SUCCESS,
    source: 'mtty_log_start, 1291',
    why: 'a stub that says yes: it keeps no log, for mtty does no DMA',
  },
  ...['REPORT without START', 'REPORT after STOP'].map((did) => ({
    rule: 'log.off',
    did,
    seen: SUCCESS,
    source: 'mtty_log_read_and_clear, 1303',
    why: 'the same: it does not know whether it was started',
  })),
];

/** What the check cannot reach with a device that does no DMA, announces no reset and never goes to ERROR. */
export const NOT_OF_MTTY: readonly string[] = [
  'not reachable: reset.states',
  'not reachable: reset.session',
  'not reachable: reset.clean',
  'not reachable: error.recovery',
  ...['works', 'dma', 'p2p', 'inside', 'unmapped'].map((rule) => `not exercised: quiet.${rule}`),
  // Nobody named a second device.
  ...['stream.into-second', 'stream.other-size', 'quiet.peer'].map((rule) => `not exercised: ${rule}`),
  ...['writes', 'page-size', 'every-range', 'report-range', 'race', 'last-write'].map(
    (rule) => `not exercised: log.${rule}`,
  ),
];
