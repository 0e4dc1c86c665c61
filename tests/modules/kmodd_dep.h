/* SPDX-License-Identifier: GPL-2.0 */
#ifndef KMODD_DEP_H
#define KMODD_DEP_H

int kmodd_dep_a_value(void);

#endif
