/* QEMU's edu, passed through by VFIO: its interrupts counted one by one, its DMA verified, and the moments at which a migration or a reset
 * is hard. use=msi (default) or intx; fill= MiB of RAM with contents (0). At the start it shows the registers as it finds them; then it
 * does what is typed:
 *   d  one DMA after the other (to the device and back, 100 ms each), each with its interrupt;   f  one factorial after the other
 *   s  neither
 *   p  with interrupts off, has the device raise one; says "pending" and waits for r
 *   m  the same with the IOAPIC's pin masked; "masked" (INTx only)
 *   i  raises one and stays in its handler, before the acknowledgement; "inside", waits for r
 *   a  the same after the acknowledgement, with the next one raised already; "inside", waits for r
 *   c t  leaves an interrupt pending and a DMA in flight, and resets the machine by port 0xcf9, or by a triple fault;   w  waits for a reset
 *   q  verdict, exit
 * Every interrupt has exactly one cause, and the guest waits for each before the next: one that is lost, doubled or empty is "wrong" (exit
 * code 3). Registers: QEMU docs/specs/edu.rst.
 *   edu pass=1 live=0x0 irq=0x0 status=0x0 factorial=0x0 source=0x0 command=0x0 msi=0
 *   dma n=12 irqs=25
 *   released irqs=26
 *   verdict dmas=.. factorials=.. irqs=.. */
#include "guest.h"

#define EDU 0x11e81234
#define BAR 0xd0000000UL
#define COMMAND 0x04
#define VECTOR 0x61
#define LEVEL 0x8000
#define MASKED 0x10000
#define PASS ((volatile u64 *)0x800000UL)
#define SOURCE 0x810000UL
#define TARGET 0x820000UL
#define FILL 0x1000000UL
#define BUFFER 0x40000
#define BYTES 4000
#define PATIENCE_NS 30000000000UL

enum { LIVE = 0x04, FACTORIAL = 0x08, STATUS = 0x20, IRQ_STATUS = 0x24, RAISE = 0x60, ACK = 0x64 };
enum { DMA_SOURCE = 0x80, DMA_TARGET = 0x88, DMA_COUNT = 0x90, DMA_COMMAND = 0x98 };
enum { COMPUTED = 0x1, DONE = 0x100, PROBE = 0x40 };

static u32 slot, gsi, msi;
static volatile u32 irqs, causes, hold;
static u64 expected, dmas, factorials;

static u32 get(u32 reg) { return *(volatile u32 *)(BAR + reg); }
static void set(u32 reg, u32 value) { *(volatile u32 *)(BAR + reg) = value; }

static void wrong(const char *what, u64 found) {
  put_text("wrong ");
  put_text(what);
  put_text(" found=");
  put_hex(found);
  put_field("irqs", irqs);
  put_field("expected", expected);
  put_char('\n');
  leave(1);
}

static u32 config_read(u32 reg) {
  outl(0xcf8, 0x80000000u | slot << 11 | (reg & 0xfc));
  return inl(0xcfc);
}
static void config_write(u32 reg, u32 value) {
  outl(0xcf8, 0x80000000u | slot << 11 | (reg & 0xfc));
  outl(0xcfc, value);
}
static void ioapic(u32 entry) {
  volatile u32 *select = (volatile u32 *)0xfec00000, *window = (volatile u32 *)0xfec00010;
  *select = 0x11 + 2 * gsi, *window = 0;
  *select = 0x10 + 2 * gsi, *window = entry;
}

/* A millisecond between two looks: each is an exit. */
static int typed(void) {
  int c = get_char();
  for (u64 until = clock_read(0) + 1000000; c < 0 && clock_read(0) < until;) cpu_relax();
  return c;
}
static void wait_for_key(char key) {
  while (typed() != key) {
  }
}

/* ---- interrupts ---- */

static void on_edu(struct frame *frame) {
  (void)frame;
  irqs++;
  u32 held = hold;
  hold = 0;
  if (held == 'i') {
    put_text("inside\n");
    wait_for_key('r');
  }
  u32 status = get(IRQ_STATUS);
  if (!status) wrong("interrupt without a cause", status);
  if (status & causes) wrong("cause seen twice", status);
  causes |= status;
  set(ACK, status);
  if (held == 'a') {
    set(RAISE, PROBE << 1);
    put_text("inside\n");
    wait_for_key('r');
  }
  apic_done();
}
static void on_tick(struct frame *frame) {
  (void)frame;
  apic_done();
}

static void expect_irq(void) {
  causes = 0;
  expected++;
}

/* With interrupts off outside. */
static void await(u32 cause) {
  u64 until = clock_read(0) + PATIENCE_NS;
  while (!(causes & cause)) {
    wait_interrupt();
    if (clock_read(0) > until) wrong("no interrupt came; status", get(IRQ_STATUS));
  }
  if (causes != cause) wrong("causes", causes);
  if (irqs != expected) wrong("number of interrupts", irqs);
}

/* Two ticks in which none may come. */
static void quiet(void) {
  u32 before = irqs;
  for (u64 until = clock_read(0) + 30000000; clock_read(0) < until;) wait_interrupt();
  if (irqs != before) wrong("one interrupt too many", causes);
}

static u32 msi_capability(void) {
  for (u32 at = config_read(0x34) & 0xfc; at; at = config_read(at) >> 8 & 0xfc)
    if ((config_read(at) & 0xff) == 5) return at;
  wrong("MSI capability", 0);
  return 0;
}

static void interrupts_of_edu(void) {
  on_interrupt(VECTOR, on_edu);
  on_interrupt(TIMER_VECTOR, on_tick);
  interrupts_on();
  timer_every(10000);
  if (!msi) return ioapic(LEVEL | VECTOR);
  u32 cap = msi_capability();
  config_write(cap + 4, 0xfee00000);
  config_write(cap + 8, 0);
  config_write(cap + 12, VECTOR);
  config_write(cap, config_read(cap) | 1 << 16);
}

/* ---- what the device does ---- */

static u64 stamp(u64 n, u64 word) { return (n << 16 ^ word) * 0x9e3779b97f4a7c15UL; }

static void start_dma(u64 from, u64 to, u32 direction) {
  set(DMA_SOURCE, from);
  set(DMA_TARGET, to);
  set(DMA_COUNT, BYTES);
  set(DMA_COMMAND, 1 | direction | 4);
}

static void say(const char *what, u64 n) {
  put_text(what);
  put_field("n", n);
  put_field("irqs", irqs);
  put_char('\n');
}

static void dma(void) {
  volatile u64 *source = (u64 *)SOURCE, *target = (u64 *)TARGET;
  u64 n = ++dmas;
  for (u64 w = 0; w < BYTES / 8; w++) source[w] = stamp(n, w);
  expect_irq();
  start_dma(SOURCE, BUFFER, 0);
  await(DONE);
  expect_irq();
  start_dma(BUFFER, TARGET, 2);
  await(DONE);
  for (u64 w = 0; w < BYTES / 8; w++)
    if (target[w] != stamp(n, w)) wrong("DMA: word", target[w]);
  say("dma", n);
}

static void factorial(void) {
  u32 n = 3 + factorials % 28, result = 1;
  for (u32 k = n; k > 1; k--) result *= k;
  expect_irq();
  set(STATUS, 0x80);
  set(FACTORIAL, n);
  await(COMPUTED);
  if (get(FACTORIAL) != result) wrong("factorial", get(FACTORIAL));
  if (++factorials % 64 == 0) say("factorial", factorials);
}

static void released(u32 cause) {
  await(cause);
  quiet();
  put_text("released");
  put_field("irqs", irqs);
  put_char('\n');
}

/* What was raised may come when r has been typed, not before. */
static void held(const char *word) {
  put_text(word);
  put_char('\n');
  wait_for_key('r');
  if (irqs != expected - 1) wrong("interrupts while held", irqs);
}

static void pending(void) {
  expect_irq();
  set(RAISE, PROBE);
  held("pending");
  released(PROBE);
}
static void masked(void) {
  ioapic(MASKED | LEVEL | VECTOR);
  expect_irq();
  set(RAISE, PROBE);
  held("masked");
  ioapic(LEVEL | VECTOR);
  released(PROBE);
}
static void inside(void) {
  expect_irq();
  hold = 'i';
  set(RAISE, PROBE);
  released(PROBE);
}
/* The handler forgets the first cause's bit here: the second is another one. */
static void after(void) {
  expect_irq();
  expected++;
  hold = 'a';
  set(RAISE, PROBE);
  while (irqs != expected) wait_interrupt();
  if (causes != (PROBE | PROBE << 1)) wrong("causes", causes);
  quiet();
  put_text("released");
  put_field("irqs", irqs);
  put_char('\n');
}

static void triple_fault(void) {
  struct __attribute__((packed)) {
    u16 limit;
    u64 base;
  } none = {0, 0};
  asm volatile("lidt %0; mov (%1), %%rax" ::"m"(none), "r"(1UL << 33) : "rax");
}
/* Everything at the device is in the middle of something. Interrupts are off. */
static void end_badly(int how) {
  set(LIVE, 0x12345678);
  set(STATUS, 0x80);
  set(FACTORIAL, 12);
  start_dma(SOURCE, BUFFER, 0);
  set(RAISE, PROBE);
  put_text("resetting\n");
  if (how == 'c') outb(0xcf9, 6);
  if (how == 't') triple_fault();
  for (;;) asm volatile("cli; hlt");
}

static void verdict(void) {
  put_text("verdict");
  put_field("dmas", dmas);
  put_field("factorials", factorials);
  put_field("irqs", irqs);
  put_char('\n');
  leave(0);
}

/* ---- start ---- */

static void find_edu(void) {
  for (slot = 0; slot < 32 && config_read(0) != EDU; slot++) {
  }
  if (slot == 32) wrong("edu", 0);
  gsi = 16 + slot % 8;
}

static void show(const char *name, u32 value) {
  put_char(' ');
  put_text(name);
  put_char('=');
  put_hex(value);
}

/* As the device is, before anything of it is touched; the BAR's place and memory decode are all that is set. */
static void show_edu(void) {
  u32 command = config_read(COMMAND) & 0xffff, control = config_read(msi_capability()) >> 16;
  config_write(0x10, BAR);
  config_write(COMMAND, 2);
  put_text("edu");
  put_field("pass", ++*PASS);
  show("live", get(LIVE));
  show("irq", get(IRQ_STATUS));
  show("status", get(STATUS));
  show("factorial", get(FACTORIAL));
  show("source", get(DMA_SOURCE));
  show("command", command);
  put_field("msi", control & 1);
  put_char('\n');
  config_write(COMMAND, 6);
}

static void fill(u64 mebibytes) {
  volatile u64 *page = (u64 *)FILL;
  for (u64 n = 0; n < mebibytes << 8; n++, page += 512) *page = stamp(n, 1);
}

void run(void) {
  int turn = 's', key;
  msi = !option_is("use", "intx");
  if (!clock_on(0)) wrong("kvmclock", 0);
  find_edu();
  show_edu();
  interrupts_of_edu();
  fill(option("fill", 0));
  quiet();
  put_text("ready\n");
  for (;;) {
    if (turn == 'd') dma();
    else if (turn == 'f') factorial();
    else wait_interrupt();
    switch (key = get_char()) {
      case 'd': case 'f': turn = key; break;
      case 's': turn = key, put_text("still\n"); break;
      case 'p': pending(); break;
      case 'm': masked(); break;
      case 'i': inside(); break;
      case 'a': after(); break;
      case 'c': case 't': case 'w': end_badly(key); break;
      case 'q': verdict();
    }
  }
}
