/* A plugin for qemu-user that counts the guest's instructions, for processors that valgrind is not at hand for.
 *
 *   cc -shared -fPIC -O2 -o insns.so tests/bench/insns.c
 *   qemu-aarch64 -L /usr/aarch64-linux-gnu -plugin ./insns.so minitcptunnel-bench loop seal 16384 120
 *
 * Written for the plugin interface of qemu 7.2, whose header Debian does not package: hence the prototypes.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef uint64_t id_t_;
struct qemu_plugin_tb;
enum { ADD = 0 };

void qemu_plugin_register_vcpu_tb_trans_cb(id_t_, void (*)(id_t_, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
void qemu_plugin_register_atexit_cb(id_t_, void (*)(id_t_, void *), void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);

int qemu_plugin_version = 1;
static uint64_t executed;

/* A block is translated once; from then on each run of it adds its length. */
static void translated(id_t_ id, struct qemu_plugin_tb *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(block, ADD, &executed, qemu_plugin_tb_n_insns(block));
}

static void finished(id_t_ id, void *data)
{
    (void)id, (void)data;
    fprintf(stderr, "instructions: %llu\n", (unsigned long long)executed);
}

int qemu_plugin_install(id_t_ id, const void *info, int argc, char **argv)
{
    (void)info, (void)argc, (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, finished, NULL);
    return 0;
}
