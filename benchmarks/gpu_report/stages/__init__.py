"""What the processes of the report do: one module for each part, whose ``run`` takes a `gpu_report.worker.Job`."""
