/* Starts cpus= (4) vCPUs; each reads kvmclock rounds= times under one lock and compares with the last value that any vCPU saw.
 *   cpu n=1 reads=500
 *   verdict cpus=4 reads=2000 back=0 */
#include "guest.h"

static volatile u32 guard, ready;
static volatile u64 last, reads[CPUS_MAX], back, done;
static u64 rounds;
static u32 cpus;

static void check(u32 cpu) {
  int clock = clock_on(cpu);
  lock(&guard);
  ready++;
  unlock(&guard);
  while (ready < cpus) cpu_relax();
  for (u64 i = 0; clock && i < rounds; i++) {
    lock(&guard);
    u64 now = clock_read(cpu);
    if (now < last) back++;
    else last = now;
    reads[cpu]++;
    unlock(&guard);
    cpu_relax();
  }
  lock(&guard);
  done++;
  unlock(&guard);
}

void run(void) {
  u64 sum = 0;
  cpus = option("cpus", 4);
  rounds = option("rounds", 200);
  interrupts_on();
  start_cpus(cpus - 1, check);
  check(0);
  while (done < cpus) cpu_relax();
  for (u32 cpu = 0; cpu < cpus; cpu++) {
    put_text("cpu");
    put_field("n", cpu);
    put_field("reads", reads[cpu]);
    put_char('\n');
    sum += reads[cpu];
  }
  put_text("verdict");
  put_field("cpus", cpus);
  put_field("reads", sum);
  put_field("back", back);
  put_char('\n');
  leave(back ? 1 : 0);
}
