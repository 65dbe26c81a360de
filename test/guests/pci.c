/* Enumerates PCI bus 0 both ways, sizes and moves BARs, and uses the example plug-in (docs/examples/counter-device.js) with its MSI, and
 * test/kvm/pci.test.ts's own device with an I/O BAR and INTA#. loop=N then goes on counting N times and checks every step: what a
 * migration test looks at. Anything that is wrong is said on the console and ends with exit code 3 (code 1).
 *   function slot=1 id=0x10ff1b36 class=0xff0000
 *   bar slot=1 index=0 type=0 size=4096
 *   counter moved=1 irqs=2
 *   intx irqs=3
 *   loop n=1 count=... irqs=...
 *   done */
#include "guest.h"

#define ECAM 0xfe000000UL
#define COUNTER 0x10ff1b36
#define LINE_DEVICE 0x10fe1b36
#define FIRST_HOME 0xd0000000UL
#define SECOND_HOME 0xd0100000UL
#define IO_HOME 0x2000
#define MSI_VECTOR 0x50
#define INTX_VECTOR 0x51
#define COMMAND 0x04
#define BAR0 0x10
#define SIGNATURE 0x544e4f43

static volatile u32 msi_irqs, intx_irqs;

static void wrong(const char *what, u64 found) {
  put_text("wrong ");
  put_text(what);
  put_text(" found=");
  put_hex(found);
  put_char('\n');
  leave(1);
}
static void must(int holds, const char *what, u64 found) {
  if (!holds) wrong(what, found);
}

static u32 config_read(u32 slot, u32 reg) {
  outl(0xcf8, 0x80000000u | slot << 11 | (reg & 0xfc));
  return inl(0xcfc);
}
static void config_write(u32 slot, u32 reg, u32 value) {
  outl(0xcf8, 0x80000000u | slot << 11 | (reg & 0xfc));
  outl(0xcfc, value);
}
static volatile u32 *ecam(u32 slot, u32 reg) { return (volatile u32 *)(ECAM + (slot << 15) + reg); }
static u32 mmio_read(u64 at) { return *(volatile u32 *)at; }
static void mmio_write(u64 at, u32 value) { *(volatile u32 *)at = value; }

/* PCI 3.0, 6.2.5.1, implementation note: sizing a BAR, with decoding off. */
static void size_bars(u32 slot) {
  u32 command = config_read(slot, COMMAND);
  config_write(slot, COMMAND, command & ~3u);
  for (u32 index = 0; index < 6; index++) {
    u32 reg = BAR0 + 4 * index;
    u32 before = config_read(slot, reg);
    config_write(slot, reg, 0xffffffff);
    u32 mask = config_read(slot, reg);
    config_write(slot, reg, before);
    if (!mask) continue;
    put_text("bar");
    put_field("slot", slot);
    put_field("index", index);
    put_field("type", mask & 1 ? 1 : mask & 6);
    put_field("size", mask & 1 ? (~(mask & ~3u) & 0xffff) + 1 : ~(mask & ~15u) + 1);
    put_char('\n');
    if ((mask & 7) == 4) index++;
  }
  config_write(slot, COMMAND, command);
}

static u32 enumerate(u32 wanted) {
  u32 found = 0;
  for (u32 slot = 0; slot < 32; slot++) {
    u32 id = config_read(slot, 0);
    must(id == *ecam(slot, 0), "ECAM's id", *ecam(slot, 0));
    must(config_read(slot, 8) == *ecam(slot, 8), "ECAM's class", *ecam(slot, 8));
    if (id == 0xffffffff) continue;
    if (id == wanted) found = slot;
    if (wanted) continue;
    put_text("function");
    put_field("slot", slot);
    put_text(" id=");
    put_hex(id);
    put_text(" class=");
    put_hex(config_read(slot, 8) >> 8);
    put_char('\n');
    size_bars(slot);
  }
  return found;
}

static u32 capability(u32 slot, u32 id) {
  for (u32 at = config_read(slot, 0x34) & 0xfc; at; at = config_read(slot, at) >> 8 & 0xfc)
    if ((config_read(slot, at) & 0xff) == id) return at;
  return 0;
}

static void on_msi(struct frame *frame) {
  (void)frame;
  msi_irqs++;
  apic_done();
}
/* Level: the device lets its line go before the end of the interrupt. */
static void on_intx(struct frame *frame) {
  (void)frame;
  intx_irqs++;
  outb(IO_HOME, 0);
  apic_done();
}

static void wait_for(volatile u32 *counter, u32 wanted) {
  asm volatile("sti" ::: "memory");
  while (*counter < wanted) cpu_relax();
  asm volatile("cli" ::: "memory");
  must(*counter == wanted, "number of interrupts", *counter);
}

/* A BAR moves while it is decoded; the old place is nobody's then. */
static u64 place_counter(u32 slot) {
  config_write(slot, BAR0, FIRST_HOME);
  must(mmio_read(FIRST_HOME) == 0xffffffff, "BAR before decoding", mmio_read(FIRST_HOME));
  config_write(slot, COMMAND, 6);
  must(mmio_read(FIRST_HOME) == SIGNATURE, "signature", mmio_read(FIRST_HOME));
  *ecam(slot, BAR0) = SECOND_HOME;
  must(mmio_read(FIRST_HOME) == 0xffffffff, "old home", mmio_read(FIRST_HOME));
  must(mmio_read(SECOND_HOME) == SIGNATURE, "new home", mmio_read(SECOND_HOME));
  return SECOND_HOME;
}

static void program_msi(u32 slot, u32 cap) {
  config_write(slot, cap + 4, 0xfee00000);
  config_write(slot, cap + 8, 0);
  config_write(slot, cap + 12, MSI_VECTOR);
  config_write(slot, cap, config_read(slot, cap) | 1 << 16);
}

static void use_counter(u32 slot, u64 bar) {
  u32 cap = capability(slot, 5);
  must(cap, "MSI capability", cap);
  on_interrupt(MSI_VECTOR, on_msi);
  program_msi(slot, cap);
  mmio_write(bar + 8, 5);
  mmio_write(bar + 4, 5);
  wait_for(&msi_irqs, 1);
  must(mmio_read(bar + 4) == 5, "count", mmio_read(bar + 4));
  /* Masked, the vector stays pending, and comes with the unmask. PCI 3.0, 6.8.3.4. */
  config_write(slot, cap + 16, 1);
  mmio_write(bar + 8, 7);
  mmio_write(bar + 4, 2);
  must(config_read(slot, cap + 20) == 1, "pending bit", config_read(slot, cap + 20));
  must(msi_irqs == 1, "interrupts while masked", msi_irqs);
  config_write(slot, cap + 16, 0);
  wait_for(&msi_irqs, 2);
  put_text("counter moved=1");
  put_field("irqs", msi_irqs);
  put_char('\n');
}

static void ioapic(u32 reg, u32 value) {
  mmio_write(0xfec00000, reg);
  mmio_write(0xfec00010, value);
}

static void use_line(u32 slot) {
  u32 gsi = 16 + slot % 8;
  on_interrupt(INTX_VECTOR, on_intx);
  ioapic(0x11 + 2 * gsi, 0);
  ioapic(0x10 + 2 * gsi, 0x8000 | INTX_VECTOR);
  config_write(slot, BAR0, IO_HOME | 1);
  config_write(slot, COMMAND, 5);
  for (u32 n = 1; n <= 3; n++) {
    outb(IO_HOME, 1);
    wait_for(&intx_irqs, n);
    must(inb(IO_HOME) == 0, "line after its interrupt", inb(IO_HOME));
  }
  put_text("intx");
  put_field("irqs", intx_irqs);
  put_char('\n');
}

static void loop(u64 bar, u64 times) {
  u32 count = mmio_read(bar + 4);
  for (u32 n = 1; n <= times; n++) {
    mmio_write(bar + 8, count + n);
    mmio_write(bar + 4, 1);
    wait_for(&msi_irqs, 2 + n);
    must(mmio_read(bar + 4) == count + n, "count", mmio_read(bar + 4));
    must(mmio_read(bar + 0xc) == 2 + n, "interrupts that the device counted", mmio_read(bar + 0xc));
    put_text("loop");
    put_field("n", n);
    put_field("count", mmio_read(bar + 4));
    put_field("irqs", msi_irqs);
    put_char('\n');
  }
}

void run(void) {
  enumerate(0);
  u32 counter = enumerate(COUNTER), line = enumerate(LINE_DEVICE);
  interrupts_on();
  if (line) use_line(line);
  if (counter) {
    u64 bar = place_counter(counter);
    use_counter(counter, bar);
    loop(bar, option("loop", 0));
  }
  put_text("done\n");
}
