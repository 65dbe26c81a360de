import { defineConfig } from 'vitest/config';

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
          testTimeout: 60_000,
          hookTimeout: 60_000,
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
