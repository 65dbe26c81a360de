import { defineConfig } from 'vitest/config';

/** A lab host, where the kvm tests run on a machine without /dev/kvm, is slower by that (scripts/kvm-in-lab.mjs). */
const patience = Number(process.env['FERRY_TEST_PATIENCE'] ?? 1);

// Native threads die with their process, so every test file gets a process of its own (pool: forks).
export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: 'unit',
          pool: 'forks',
          include: ['test/unit/**/*.test.ts', 'test/conformance/**/*.test.ts'],
          testTimeout: 20_000,
        },
      },
      {
        test: {
          name: 'kvm',
          pool: 'forks',
          include: ['test/kvm/**/*.test.ts'],
          testTimeout: 60_000 * patience,
          hookTimeout: 60_000 * patience,
          fileParallelism: false,
        },
      },
      { test: { name: 'fuzz', pool: 'forks', include: ['test/fuzz/**/*.test.ts'], testTimeout: 300_000 } },
      {
        test: {
          name: 'lab',
          pool: 'forks',
          include: ['test/lab/**/*.test.ts'],
          testTimeout: 600_000,
          hookTimeout: 600_000,
          fileParallelism: false,
          sequence: { concurrent: false },
        },
      },
    ],
  },
});
