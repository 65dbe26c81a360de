// The rules of each generation of the interface, and how a device that speaks it is opened for them. Used by the child, which runs one of them,
// and by check.ts and the cli, which list all.
import { Bench } from './bench.ts';
import { RegionBench } from './bench-region.ts';
import { StatesBench } from './bench-states.ts';
import type { BenchHost, OpenedDevice } from './opened.ts';
import type { Generation, Rule, RuleResult, RuleText } from './rule.ts';
import { RULES } from './rules.ts';
import { regionDataRules } from './rules-region-data.ts';
import { regionRules, v1OnlyRules, v7OnlyRules } from './rules-region-v1.ts';
import { pfnRules } from './rules-region-v7.ts';
import { partRules } from './rules-state-data.ts';
import { ctlRules } from './rules-state-regions.ts';
import { type RuleHost, runOn } from './run-rule.ts';

export interface Suite {
  readonly rules: readonly RuleText[];
  open(host: BenchHost): OpenedDevice;
  /** null: it has no rule of that name. */
  run(name: string, host: RuleHost): Promise<RuleResult> | null;
}

function suite<B extends OpenedDevice>(rules: readonly Rule<B>[], open: (host: BenchHost) => B): Suite {
  return {
    rules,
    open,
    run: (name, host) => {
      const rule = rules.find((each) => each.name === name);
      return rule === undefined ? null : runOn(rule, open, host);
    },
  };
}

export const V1_RULES = [...regionRules, ...v1OnlyRules, ...regionDataRules];
export const V7_RULES = [...regionRules, ...v7OnlyRules, ...regionDataRules, ...pfnRules];
export const STATE_REGION_RULES = [...ctlRules, ...partRules];

export const SUITES: Readonly<Record<Generation, Suite>> = {
  v2: suite(RULES, Bench.open),
  v1: suite(V1_RULES, RegionBench.openV1),
  v7: suite(V7_RULES, RegionBench.openV7),
  regions: suite(STATE_REGION_RULES, StatesBench.open),
};

/** Those of all generations, each name once. */
export const ALL_RULES: readonly RuleText[] = Object.values(SUITES)
  .flatMap(({ rules }) => rules)
  .filter(({ name }, i, all) => all.findIndex((each) => each.name === name) === i);
