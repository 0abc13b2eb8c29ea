/* A plugin of QEMU: how many instructions a program executes, and how many of them are fused multiply-adds of four floats
 * (FMLA Vd.4S). Each process writes one line, "instructions N fmla N", to the file named by `out=`, appended, and with
 * `blocks=1` a line "block ADDRESS INSTRUCTIONS TIMES" for each block of code that it executed. The counters are shared by
 * threads without a lock: count with one thread. What is declared here is QEMU's plugin interface, version 1, which Debian
 * ships no header of. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t Id;
enum { ADD_U64 = 0 };
extern void qemu_plugin_register_vcpu_tb_trans_cb(Id, void (*)(Id, void *));
extern size_t qemu_plugin_tb_n_insns(const void *);
extern void *qemu_plugin_tb_get_insn(const void *, size_t);
extern const void *qemu_plugin_insn_data(const void *);
extern uint64_t qemu_plugin_tb_vaddr(const void *);
extern void qemu_plugin_register_vcpu_tb_exec_inline(void *, int, void *, uint64_t);
extern void qemu_plugin_register_atexit_cb(Id, void (*)(Id, void *), void *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;
static uint64_t instructions, fmla;
static const char *out = "/dev/stderr";
static int by_block;

/* Of one translation; code that is translated again has another. */
struct Block {
  uint64_t address, length, times;
  struct Block *before;
};
static struct Block *blocks;

/* FMLA Vd.4S by vector (0x4e20cc00) or by element (0x4f801000); FMLS, which differs by one bit, too. */
static int fused(uint32_t word) { return (word & 0xff60fc00) == 0x4e20cc00 || (word & 0xffc0b400) == 0x4f801000; }

static void translated(Id id, void *block) {
  const size_t count = qemu_plugin_tb_n_insns(block);
  uint64_t found = 0;
  for (size_t i = 0; i < count; ++i) {
    uint32_t word;
    memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), sizeof word);
    found += fused(word);
  }
  (void)id;
  qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &instructions, count);
  struct Block *own = by_block ? malloc(sizeof *own) : NULL;
  if (own) {
    *own = (struct Block){qemu_plugin_tb_vaddr(block), count, 0, blocks};
    blocks = own;
    qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &own->times, 1);
  }
  if (found) qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &fmla, found);
}

static void ended(Id id, void *nothing) {
  FILE *file = fopen(out, "a");
  (void)id, (void)nothing;
  if (!file) return;
  fprintf(file, "instructions %llu fmla %llu\n", (unsigned long long)instructions, (unsigned long long)fmla);
  for (const struct Block *b = blocks; b; b = b->before)
    if (b->times)
      fprintf(file, "block %llx %llu %llu\n", (unsigned long long)b->address, (unsigned long long)b->length, (unsigned long long)b->times);
  fclose(file);
}

__attribute__((visibility("default"))) int qemu_plugin_install(Id id, const void *info, int argc, char **argv) {
  (void)info;
  for (int i = 0; i < argc; ++i) {
    if (strcmp(argv[i], "blocks=1") == 0) by_block = 1;
    if (strncmp(argv[i], "out=", 4) == 0) out = strdup(argv[i] + 4);
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, ended, NULL);
  return 0;
}
