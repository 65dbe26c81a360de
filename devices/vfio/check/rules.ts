// All rules of `ferry vfio check`, in the order in which they run: what others presuppose comes first. Read by the cli and by the child.
import type { Rule } from './rule.ts';
import { besideRules } from './rules-beside.ts';
import { fdRules } from './rules-fd.ts';
import { hostRules } from './rules-host.ts';
import { logRules } from './rules-log.ts';
import { precopyRules, sizeRules } from './rules-precopy.ts';
import { quietRules } from './rules-quiet.ts';
import { resetRules } from './rules-reset.ts';
import { stateRules } from './rules-states.ts';
import { streamRules } from './rules-stream.ts';

export const RULES: readonly Rule[] = [
  ...stateRules,
  ...fdRules,
  ...precopyRules,
  ...sizeRules,
  ...streamRules,
  ...resetRules,
  ...quietRules,
  ...besideRules,
  ...logRules,
  ...hostRules,
];

/** Watched around every rule, so it has no run() of its own: its finding names the rule that it came up in. */
export const KERNEL_RULE = {
  name: 'kernel.log',
  title: 'the kernel complains of nothing while any rule runs: no warning, no fault, no taint',
  cites: 'must not result in error conditions outside the user context (ex. host system faults)',
} as const;

/** A call that never returns is a finding about the driver, whichever rule made it. */
export const HANG_RULE = {
  name: 'calls.end',
  title: 'every call ends',
  cites: 'must fully transition the device to the new state value before the operation returns to the user',
} as const;
