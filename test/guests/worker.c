/* What a migration test moves: ticks on the console from the local APIC timer, and pages with stamped content that are verified before
 * they are stamped again. Options: pages= (256), batch= pages a tick (8), tick= microseconds (20000), ticks= (0: for ever).
 * Typed at the console: q verdict and exit, f flips a bit in one page (a negative control), v verdict.
 *   tick n=12 ns=240000000 checks=96 errors=0 back=0
 *   verdict ticks=12 checks=96 errors=0 back=0
 * ns is kvmclock; back counts clock readings that were smaller than the one before. */
#include "guest.h"

#define BASE 0x800000UL
#define STEP 64 /* words between the stamps of a page */

static volatile u64 timer_fired;
static u64 ticks, checks, errors, back, next_page, lap;
static u32 pages;

static void on_timer(struct frame *frame) {
  (void)frame;
  timer_fired++;
  apic_done();
}

static u64 stamp(u64 page, u64 of_lap, u64 word) { return (page << 40 ^ of_lap << 8 ^ word) * 0x9e3779b97f4a7c15UL; }

static int good(u64 page, u64 of_lap) {
  volatile u64 *p = (u64 *)(BASE + page * 4096);
  for (u64 w = 0; w < 512; w += STEP)
    if (p[w] != stamp(page, of_lap, w)) return 0;
  return 1;
}

static void write_page(u64 page, u64 of_lap) {
  volatile u64 *p = (u64 *)(BASE + page * 4096);
  for (u64 w = 0; w < 512; w += STEP) p[w] = stamp(page, of_lap, w);
}

static void work(u32 batch) {
  while (batch--) {
    if (lap) {
      checks++;
      if (!good(next_page, lap - 1)) errors++;
    }
    write_page(next_page, lap);
    if (++next_page == pages) next_page = 0, lap++;
  }
}

static void fields(void) {
  put_field("checks", checks);
  put_field("errors", errors);
  put_field("back", back);
  put_char('\n');
}

static void verdict(void) {
  put_text("verdict");
  put_field("ticks", ticks);
  fields();
}

static void command(int c) {
  if (c == 'f') *(volatile u64 *)(BASE + (next_page + pages / 2) % pages * 4096) ^= 1;
  if (c == 'v' || c == 'q') verdict();
  if (c == 'q') leave(errors || back ? 1 : 0);
}

void run(void) {
  u64 last = 0, limit = option("ticks", 0);
  u32 batch = option("batch", 8);
  pages = option("pages", 256);
  put_text("worker");
  put_field("pages", pages);
  put_char('\n');
  int clock = clock_on(0);
  on_interrupt(TIMER_VECTOR, on_timer);
  interrupts_on();
  timer_every(option("tick", 20000));
  while (!limit || ticks < limit) {
    u64 seen = timer_fired;
    while (timer_fired == seen) wait_interrupt();
    u64 now = clock ? clock_read(0) : 0;
    if (now < last) back++;
    last = now;
    work(batch);
    put_text("tick");
    put_field("n", ++ticks);
    put_field("ns", now);
    fields();
    command(get_char());
  }
  verdict();
  leave(errors || back ? 1 : 0);
}
