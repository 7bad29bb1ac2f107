"""The same run under a scheduler: a script for Slurm's sbatch, a Job and a Service for Kubernetes. Written, not started."""

from __future__ import annotations

import json
import shlex

from .launch import GRACE, Job

SLURM = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
{gpus}#SBATCH --output={name}-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# {grace} s before the time limit every process is asked to save; submit the same script again to continue.
#SBATCH --signal=TERM@{grace}
# Add what your site asks for: --partition, --account, --time; activate the environment that sprout is in.
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
threads=$(( ${{SLURM_CPUS_ON_NODE:-{per_node}}} / {per_node} ))
export OMP_NUM_THREADS=$(( threads > 0 ? threads : 1 ))
{hidden}
# One torchrun on each node; the ranks are its children.
srun --cpus-per-task="${{SLURM_CPUS_ON_NODE:-{per_node}}}" torchrun \\
  --nnodes={nodes} \\
  {meet} \\
  {of_node} \\
  {train}
"""

KUBERNETES = """# One pod for each node of the run. Pod 0 is where the others meet; the Service gives it a name.
apiVersion: v1
kind: Service
metadata:
  name: {name}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector:
    job-name: {name}
  ports:
    - name: rendezvous
      port: {port}
---
apiVersion: batch/v1
kind: Job
metadata:
  name: {name}
spec:
  completionMode: Indexed
  completions: {nodes}
  parallelism: {nodes}
  backoffLimit: {retries}
  template:
    spec:
      subdomain: {name}
      restartPolicy: OnFailure
      terminationGracePeriodSeconds: {grace}
      containers:
        - name: train
          image: {image}
          workingDir: /work
          command: ["/bin/sh", "-c"]
          args:
            - {command}
          env:
{environment}
          resources:
            limits:
{limits}
          volumeMounts:
            - {{name: work, mountPath: /work}}
            - {{name: memory, mountPath: /dev/shm}}
      volumes:
        # What every pod must see: the recipe, the data, the run folder. A claim that many pods may write (ReadWriteMany).
        - name: work
          persistentVolumeClaim:
            claimName: {claim}
        - name: memory
          emptyDir: {{medium: Memory}}
"""


def slurm(job: Job) -> str:
    """A script for ``sbatch``."""
    return SLURM.format(
        name=job.name,
        nodes=job.nodes,
        per_node=job.per_node,
        gpus=f"#SBATCH --gpus-per-node={job.per_node}\n" if job.gpus else "",
        grace=GRACE,
        hidden="" if job.gpus else "export CUDA_VISIBLE_DEVICES=\n",
        meet=" ".join(job.meeting(f'"$head_node:{job.port}"', '"$SLURM_JOB_ID"')),
        of_node=" ".join(job.of_node()),
        train=shlex.join(job.train()),
    )


def kubernetes(job: Job, image: str, claim: str) -> str:
    """Manifests for ``kubectl apply -f``: no operator is needed. JSON's strings are YAML's, so text is quoted as JSON."""
    where = job.meeting(f"{job.name}-0.{job.name}:{job.port}", job.name)
    # A pod may not know its own name yet when torchrun asks whether it is the one that the others meet at.
    host = '--rdzv-conf=is_host="$([ "$JOB_COMPLETION_INDEX" = 0 ] && echo 1 || echo 0)"'
    words = ["exec torchrun", f"--nnodes={job.nodes}", shlex.join(where), host, shlex.join(job.of_node())]
    threads = {} if job.gpus else {"CUDA_VISIBLE_DEVICES": ""}
    threads |= {"OMP_NUM_THREADS": "4" if job.gpus else "1"}
    limit = {"nvidia.com/gpu": str(job.per_node)} if job.gpus else {"cpu": str(job.per_node)}
    return KUBERNETES.format(
        name=job.name,
        port=job.port,
        nodes=job.nodes,
        retries=job.nodes * max(1, job.max_restarts),
        grace=GRACE,
        image=json.dumps(image),
        claim=json.dumps(claim),
        command=json.dumps(" ".join([*words, shlex.join(job.train())]), ensure_ascii=False),
        environment="\n".join(f"            - {{name: {k}, value: {json.dumps(v)}}}" for k, v in threads.items()),
        limits="\n".join(f"              {k}: {json.dumps(v)}" for k, v in limit.items()),
    )
